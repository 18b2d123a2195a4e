# SPDX-License-Identifier: MIT
"""Ways of training and modules that masks cannot follow are named before training starts."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateFinder,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.tuner import Tuner
from torch import nn

from solo.errors import ConfigError
from sparse_ext import sparsify
from sparse_ext.config import build
from sparse_ext.masks.encoder import InvariantError
from sparse_ext.masks.masking import patch
from sparse_ext.training.fixed_masks import FixedMasks
from tests.pruning.toys import Toy, data, tiny_net, toy, trainer
from tests.training.amp import ScaledFloat32
from tests.training.runs import FAST, fit

pytestmark = pytest.mark.unit


class TwoOptimizers(Toy):
    def configure_optimizers(self):
        return [torch.optim.SGD(self.parameters(), 0.1), torch.optim.SGD(self.parameters(), 0.1)]


def test_ways_of_training_that_masks_cannot_follow():
    model = toy()
    sparsify(model, FAST)
    model.automatic_optimization = False
    with pytest.raises(ConfigError, match="optimizes by hand"):
        trainer().fit(model, data())
    model = TwoOptimizers()
    sparsify(model, FAST)
    with pytest.raises(Exception, match=r"one optimizer|multiple optimizers"):
        trainer().fit(model, data())
    model = toy()
    sparsify(model, FAST)
    run = trainer()
    run.strategy.__class__ = type("FSDPStrategy", (type(run.strategy),), {})
    with pytest.raises(ConfigError, match="strategy=FSDPStrategy"):
        run.fit(model, data())
    model = toy(optimizer=lambda p: torch.optim.Adam(p, fused=True))
    sparsify(model, FAST)
    with pytest.raises(ConfigError, match="fused"):
        trainer(plugins=[ScaledFloat32(1.0)]).fit(model, data())
    model = toy()
    sparsify(model, FAST)
    with pytest.raises(ConfigError, match="max_epochs or max_steps"):
        trainer(epochs=-1).fit(model, data())


def test_modules_that_do_not_fit():
    with pytest.raises(ConfigError, match="no attribute 'backbone'"):
        sparsify(pl.LightningModule(), FAST)
    model = toy(momentum=False)
    sparsify(model, {**FAST, "momentum_initial": 0.0})
    with pytest.raises(ConfigError, match="momentum encoder; this one has none"):
        trainer().fit(model, data())
    for option in (
        {"gap": 0.2},
        {"offline_regrow": True},
        {"ema_mode": "hold"},
        {"sparser": "offline", "initial": 0.0, "final": 0.5},
    ):
        model = toy(momentum=False)
        sparsify(model, {**FAST, **option})
        with pytest.raises(ConfigError, match=rf"sparse\.{next(iter(option))}=.*Leave it out"):
            trainer().fit(model, data())
    fit(toy(momentum=False), section={**FAST, "gap": 0.0, "initial": 0.0})
    model = toy()
    model.momentum_backbone = tiny_net(4)
    sparsify(model, FAST)
    with pytest.raises(ConfigError, match="different prunable layers"):
        trainer().fit(model, data())
    model = toy()
    model.backbone = nn.Sequential(nn.Conv2d(3, 8, 1))
    with pytest.raises(ConfigError, match="nothing to prune"):
        sparsify(model, FAST)
    with pytest.raises(ConfigError, match=r"lower sparse\.update_period"):
        fit(toy(), section={**FAST, "update_period": 100})


class Swap(EMAWeightAveraging):
    """Of the user's own."""


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (EMAWeightAveraging(), "EMAWeightAveraging .*union of all masks"),
        (Swap(), "Swap .*union of all masks"),
        (WeightAveraging(), "WeightAveraging .*union of all masks"),
        (StochasticWeightAveraging(0.01), "StochasticWeightAveraging .*Leave it out"),
        (LearningRateFinder(), "LearningRateFinder .*with the dense module"),
        (GradientAccumulationScheduler({0: 1, 2: 2}), "accumulate_grad_batches of the Trainer"),
    ],
)
@pytest.mark.parametrize("fixed", [True, False])
def test_callbacks_that_masks_cannot_follow(callback, message, fixed):
    model = toy()
    callbacks = [callback]
    if fixed:
        patch(model.backbone, build("gmp"))
        callbacks.append(FixedMasks())
    else:
        sparsify(model, FAST)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ConfigError, match=message):
        trainer(callbacks=callbacks).fit(model, data())
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())


class Batches(pl.LightningDataModule):
    batch_size = 2

    def train_dataloader(self):
        return data(size=self.batch_size)


def test_tuning_of_a_sparse_run():
    model = toy()
    model.learning_rate = 0.1
    sparsify(model, FAST)
    run = trainer(epochs=4)
    with pytest.raises(ConfigError, match=r"LearningRateFinder .*with the dense module"):
        Tuner(run).lr_find(model, data())
    with pytest.raises(ConfigError, match=r"BatchSizeFinder .*with the dense module"):
        Tuner(trainer(epochs=4)).scale_batch_size(model, datamodule=Batches())


def test_optimizers_that_move_weights_within_a_step():
    model = toy(optimizer=lambda p: torch.optim.LBFGS(p, 0.1))
    sparsify(model, FAST)
    with pytest.raises(ConfigError, match="LBFGS moves weights several times within a step"):
        trainer().fit(model, data())


def test_an_accumulation_scheduler_that_changes_nothing_is_welcome():
    model = toy()
    callback = sparsify(model, FAST)
    trainer(epochs=4, callbacks=[GradientAccumulationScheduler({0: 1})]).fit(model, data())
    assert callback.pruner.t == callback.pruner.clock.steps == 20


class Scribbler(pl.Callback):
    """Writes to a pruned weight after the last step."""

    def __init__(self, name):
        self.name = name

    def on_train_end(self, run, module):
        layer = getattr(module, self.name)[3]
        with torch.no_grad():
            layer.weight[~layer.mask] = 1.0


@pytest.mark.parametrize("name", ["backbone", "momentum_backbone"])
def test_whatever_writes_to_pruned_weights_is_found_at_the_end(name):
    model = toy()
    sparsify(model, {"name": "granet_ssl", "update_period": 2, "final": 0.8})
    with pytest.raises(InvariantError, match=r"'3': a pruned weight .*something else has written"):
        trainer(epochs=4, callbacks=[Scribbler(name)]).fit(model, data())


def test_masks_that_somebody_else_changes_are_found_at_the_end():
    class Opener(pl.Callback):
        def on_train_end(self, run, module):
            module.backbone[3].mask.fill_(True)
            module.backbone[3].shadow.zero_()

    model = toy()
    sparsify(model, {"name": "granet_ssl", "update_period": 2, "final": 0.8})
    with pytest.raises(InvariantError, match="logged after the last step"):
        trainer(epochs=4, callbacks=[Opener()]).fit(model, data())


def test_a_finished_run_that_is_started_again_has_nothing_to_do(tmp_path):
    model = toy()
    sparsify(model, FAST)
    run = trainer(tmp_path, epochs=2)
    run.fit(model, data())
    run.save_checkpoint(tmp_path / "end.ckpt")
    again = toy()
    callback = sparsify(again, FAST)
    trainer(tmp_path, epochs=2).fit(again, data(), ckpt_path=tmp_path / "end.ckpt")
    assert callback.pruner is None
