# SPDX-License-Identifier: MIT
"""Accounts of a step's time, on a clock that the test moves."""

import json

import pytest
import torch
from torch.utils.data import DataLoader

from solo.monitoring import profiling
from solo.monitoring.profiling import StepProfiler, section
from tests.methods.helpers import tiny_trainer
from tests.monitoring.test_step_metrics import DeferredToy

pytestmark = pytest.mark.unit


class Clock:
    """Time passes when `passes` is called."""

    now = 100.0

    def __call__(self):
        return self.now

    def passes(self, seconds):
        self.now += seconds


def step(profiler, clock):
    """One step as Lightning announces it, of 21 seconds."""
    with profiler.profile("[_TrainingEpochLoop].train_dataloader_next"):
        clock.passes(1)
        with profiler.profile(profiling.AUGMENTATION):
            clock.passes(2)
    with profiler.profile("[Strategy]Single.batch_to_device"):
        clock.passes(1)
    optimizer_step = profiler.profile("[LightningModule]BYOL.optimizer_step")
    with profiler.profile("run_training_batch"), optimizer_step:
        clock.passes(0.5)
        with profiler.profile("[Strategy]Single.training_step"):
            clock.passes(4)
            with section(profiling.LOGGING):
                clock.passes(0.25)
        with profiler.profile("[Strategy]Single.backward"):
            clock.passes(5)
        with profiler.profile("[Callback]PruningCallback.on_before_optimizer_step"):
            clock.passes(1.25)
        with profiler.profile("[Callback]Other.on_before_optimizer_step"):
            clock.passes(1)
        clock.passes(1)
        with section(profiling.MASKS):
            clock.passes(1)
    with profiler.profile("[LightningModule]BYOL.on_train_batch_end"):
        clock.passes(2)
    clock.passes(1)


PER_STEP = {
    profiling.DATA_WAIT: 1,
    profiling.TRANSFER: 1,
    profiling.AUGMENTATION: 2,
    profiling.FORWARD: 4,
    profiling.BACKWARD: 5,
    profiling.OPTIMIZER: 1.5,
    profiling.MASKS: 2.25,
    profiling.MOMENTUM: 2,
    profiling.LOGGING: 0.25,
    profiling.CALLBACKS: 1,
    profiling.OTHER: 1,
}


def profiled(steps):
    clock = Clock()
    profiler = StepProfiler(["PruningCallback"], clock)
    with profiler.receiving(), profiler.profile("run_training_epoch"):
        for _ in range(steps):
            step(profiler, clock)
        with profiler.profile("[Callback]Checkpointer.on_train_epoch_end"):
            clock.passes(50)
        clock.passes(7)
        with profiler.profile("[_EvaluationLoop].val_next"):
            clock.passes(3)
        step(profiler, clock)
        with profiler.profile("[Callback]Checkpointer.on_train_epoch_end"):
            clock.passes(50)
    return profiler


def test_every_second_of_a_step_is_in_one_part_and_nothing_else_is():
    profiler = profiled(steps=4)
    assert profiler.steps == 5 - profiling.WARM_UP
    # what follows the second batch's own part of the step is counted with it: 3 seconds
    expected = {part: 3.0 * seconds for part, seconds in PER_STEP.items()}
    expected[profiling.MOMENTUM] += 2
    expected[profiling.OTHER] += 1
    assert profiler.seconds == pytest.approx(expected)


def test_the_table_and_the_file_say_the_same(tmp_path):
    profiler = profiled(steps=4)
    total = sum(profiler.seconds.values())
    table = profiler.table(images_per_step=256)
    assert f"{3 * 256 / total:,.0f} images/s" in table
    (row,) = (line.split() for line in table.splitlines() if line.startswith("backward"))
    assert float(row[1]) == pytest.approx(5000)
    assert row[2] == f"{15 / total:.1%}"
    profiler.write(tmp_path / "run", 256)
    stored = json.loads((tmp_path / "run" / profiling.FILE).read_text(encoding="utf-8"))
    assert stored["steps"] == 3
    assert stored["seconds"] == pytest.approx(profiler.seconds)


def test_too_few_steps_are_said_to_be_too_few():
    assert "too few steps" in profiled(steps=1).table(1)


def test_sections_cost_nothing_without_a_profiler():
    with section(profiling.MASKS) as inside:
        assert inside is None


def test_lightning_uses_the_names_that_are_looked_for():
    trainer = tiny_trainer(max_epochs=1)
    trainer.profiler = profiler = StepProfiler()
    data = DataLoader(torch.arange(12, dtype=torch.float32), batch_size=2)
    with profiler.receiving():
        trainer.fit(DeferredToy(), data)
    found = {part for part, seconds in profiler.seconds.items() if seconds > 0}
    named = (profiling.DATA_WAIT, profiling.TRANSFER, profiling.FORWARD, profiling.BACKWARD)
    assert found >= {*named, profiling.OPTIMIZER, profiling.MOMENTUM, profiling.LOGGING}
    assert profiler.steps == 6 - profiling.WARM_UP
    assert profiling._active is None
