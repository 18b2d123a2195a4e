# SPDX-License-Identifier: MIT
"""Ways of training and modules that masks cannot follow are named before training starts."""

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from solo.errors import ConfigError
from sparse_ext import sparsify
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
