# SPDX-License-Identifier: MIT
"""Runs with the element-wise kernel: repeated, resumed, and in two processes."""

import shutil

import lightning.pytorch as pl
import pytest
import torch
from torch import distributed as dist

from sparse_ext.config.sections import build
from sparse_ext.kernels.element import choice, native
from sparse_ext.kernels.element.swap import element_layers
from sparse_ext.training.attach import attach
from tests.pruning.toys import data, toy, trainer
from tests.training.processes import launch

pytestmark = [
    pytest.mark.dist,
    pytest.mark.skipif(
        not native.variant() or not shutil.which("c++"), reason="needs AVX2 and a C++ compiler"
    ),
]
SYNCCP = {"final": 0.9, "gap": 0.2, "update_period": 2, "csi": {"mode": "off"}, "score_every": 3}


class Saving(pl.Callback):
    """Writes a checkpoint at the end of the first epoch."""

    def __init__(self, path):
        self.path = path

    def on_train_epoch_end(self, run, module):
        if run.current_epoch == 0:
            run.save_checkpoint(self.path)


class Seen(pl.Callback):
    """Which layers of the encoder used the kernel last, and their masks."""

    def on_train_end(self, run, module):
        layers = element_layers(module.backbone)
        self.used = [layer.used for layer in layers]
        self.masks = [layer.mask.tolist() for layer in layers if hasattr(layer, "mask")]


def run(kernel, callbacks=(), ckpt_path=None, seed=0, **options):
    """A toy trained for two epochs; its state."""
    choice.WORTHWHILE = 0
    module = toy(seed=0, width=16)
    section = {"name": "synccp", "kernel": kernel, **SYNCCP}
    attach(module, build(section))
    torch.manual_seed(seed)
    seen = Seen()
    fit = trainer(epochs=2, callbacks=[*callbacks, seen], **options)
    fit.fit(module, data(seed=1 + seed, width=16), ckpt_path=ckpt_path)
    module.used, module.masks = seen.used, seen.masks
    return module


@pytest.fixture(autouse=True)
def small_layers_too(monkeypatch):
    choice.wait()
    monkeypatch.setattr(choice, "WORTHWHILE", 0)


def equal(first, second):
    """Bit by bit."""
    wanted, found = first.state_dict(), second.state_dict()
    assert list(wanted) == list(found)
    for name, value in wanted.items():
        assert torch.equal(value, found[name]), name


@pytest.mark.parametrize("kernel", ["element", "auto"])
def test_a_run_repeats_to_the_same_bits(kernel, tmp_path, monkeypatch):
    """`auto` decides alike because what it once measured is kept."""
    runs = []
    for _ in range(2):  # each finds what a process before it has measured
        monkeypatch.setattr(choice, "_bounds", choice.Bounds(tmp_path / "bounds.json"))
        runs.append(run(kernel))
    equal(*runs)


@pytest.mark.parametrize("kernel", ["element", "auto"])
def test_a_resumed_run_ends_as_one_that_never_stopped(kernel, tmp_path, monkeypatch):
    """After 5 steps: between updates of masks, and between steps that `score_every` looks at."""
    monkeypatch.setattr(choice, "_bounds", choice.Bounds(tmp_path / "bounds.json"))
    path = tmp_path / "middle.ckpt"
    whole = run(kernel, callbacks=[Saving(path)])
    if kernel == "element":
        assert all(whole.used)
    monkeypatch.setattr(choice, "_bounds", choice.Bounds(tmp_path / "bounds.json"))
    equal(whole, run(kernel, ckpt_path=path))


def worker(rank, kernel):
    if kernel == "auto":  # the ranks choose as differently as they can
        choice._bounds = choice.Bounds(None)
        choice.measure = lambda case, density: rank == 0
    try:
        module = run(kernel, seed=rank, devices=2, strategy="ddp", use_distributed_sampler=False)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    weights = [p.detach() for p in module.backbone.parameters()]
    return module.masks, [w.tolist() for w in weights], module.used


def test_two_processes_end_with_equal_masks_and_weights():
    """Each has images of its own; sums of gradients are what both step by."""
    first, second = launch(worker, "element")
    dense, _ = launch(worker, "dense")
    assert first == second
    assert all(first[2])
    assert first[0]
    assert not dense[0]  # without the kernel there are no layers of it
    for found, wanted in zip(first[1], dense[1], strict=True):
        torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted), rtol=1e-3, atol=1e-4)


def test_ranks_that_choose_differently_have_the_same_masks_and_weights():
    """What they step by has been averaged."""
    first, second = launch(worker, "auto")
    assert any(first[2])
    assert not any(second[2])
    assert first[:2] == second[:2]
    assert first[0]
