# SPDX-License-Identifier: MIT
"""NaN stops a run before it is saved; what an epoch draws follows from seed, epoch and rank."""

import random

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from solo.errors import NonFiniteError
from solo.monitoring.guards import EpochSeeder, NonFiniteGuard
from solo.monitoring.loggers import CSVMetrics
from solo.utils.checkpointer import Checkpointer
from tests.utils.toy import Toy, cfg, fit

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("interval", [1, 50])
def test_nan_loss_names_step_and_last_good_checkpoint(tmp_path, interval):
    saver = Checkpointer(cfg(), tmp_path)
    guard = NonFiniteGuard(saver)
    with pytest.raises(NonFiniteError) as error:
        fit(
            Toy(explode_at=4),
            [guard, saver],
            logger=CSVMetrics(tmp_path),
            log_every_n_steps=interval,
        )
    assert "the loss is nan at step 5 (epoch 1)" in str(error.value)
    assert "toy-0-ep=0.ckpt" in str(error.value)
    assert [path.name for path in saver.path.glob("*.ckpt")] == ["toy-0-ep=0.ckpt"]
    saved = torch.load(saver.last_ckpt)["state_dict"]
    assert all(tensor.isfinite().all() for tensor in saved.values())


def test_nan_weights_are_not_saved(tmp_path):
    class Break(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            if trainer.global_step == 3:
                pl_module.backbone.bias.data[1] = float("inf")

    saver = Checkpointer(cfg(), tmp_path)
    with pytest.raises(
        NonFiniteError, match=r"a weight is NaN or infinite at step 3.*No checkpoint"
    ):
        fit(Toy(), [Break(), NonFiniteGuard(saver), saver], logger=CSVMetrics(tmp_path))
    assert not list(saver.path.glob("*.ckpt"))


def test_finite_runs_are_left_alone(tmp_path):
    assert fit(Toy(), [NonFiniteGuard()]).global_step == 9


def test_what_an_epoch_draws_follows_from_seed_and_epoch():
    drawn = {}

    class Draw(pl.Callback):
        def __init__(self, key):
            self.key = key

        def on_train_epoch_start(self, trainer, pl_module):
            numbers = (random.random(), np.random.rand(), torch.rand(()).item())
            drawn[self.key, trainer.current_epoch] = numbers

    for key, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.manual_seed(len(drawn))
        fit(Toy(), [EpochSeeder(seed), Draw(key)], epochs=2)
    assert drawn["a", 0] == drawn["b", 0]
    assert drawn["a", 1] == drawn["b", 1]
    flat = [value for key in (("a", 0), ("a", 1), ("c", 0)) for value in drawn[key]]
    assert len(set(flat)) == len(flat)
