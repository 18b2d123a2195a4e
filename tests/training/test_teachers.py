# SPDX-License-Identifier: MIT
"""Momentum encoders under other names, and averaged within the training step, as in lightly."""

import copy
import logging

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from solo.errors import ConfigError
from solo.utils.momentum import MomentumUpdater
from sparse_ext import sparsify
from sparse_ext.masks.masked_layers import masked_layers
from sparse_ext.training.teachers import find_teacher
from tests.pruning.toys import Toy, data, tiny_net, trainer

pytestmark = pytest.mark.unit

SECTION = {"name": "granet_ssl", "update_period": 2, "final": 0.8}


class Foreign(Toy):
    """Online and momentum encoder under given names, averaged where `when` says."""

    def __init__(self, online="backbone", momentum="backbone_momentum", when="start", tau=0.9):
        super().__init__(momentum=False)
        self.names, self.when, self.rate = (online, momentum), when, tau
        net = self._modules.pop("backbone")
        self.add_module(online, net)
        self.add_module(momentum, copy.deepcopy(net).requires_grad_(False))

    def average(self):
        theirs, mine = (getattr(self, name).parameters() for name in self.names)
        for online, own in zip(theirs, mine, strict=True):
            own.data = own.data * self.rate + online.data * (1.0 - self.rate)  # as lightly does

    def training_step(self, batch, batch_idx):
        x, target = batch
        online, momentum = (getattr(self, name) for name in self.names)
        if self.when == "start":
            self.average()
        out = self.predictor(online(x))
        loss = nn.functional.mse_loss(out, target + momentum(x.flip(-1)).detach())
        if self.when == "end":
            self.average()
        return loss

    def on_train_batch_end(self, *_):
        if self.when == "batch_end":
            self.average()


class Averaging(Callback):
    """Averages as callbacks of other libraries do, after the batch."""

    def on_train_batch_end(self, run, module, *_):
        module.average()


class WithUpdater(Foreign):
    """The same, through an updater that knows of masks."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.momentum_updater = MomentumUpdater(self.rate, self.rate)

        self.late = self.when == "end"  # nothing may change before the backward pass
        self.when = "" if self.late else self.when

    def on_after_backward(self):
        if self.late:
            self.average()

    def average(self):
        self.momentum_updater.update(*(getattr(self, name) for name in self.names))


def trained(kind, mode="latent", when="start"):
    torch.manual_seed(0)
    callbacks = [Averaging()] if when == "callback" else []
    model = kind(when=when)
    callback = sparsify(model, {**SECTION, "ema_mode": mode}, online=model.names[0])
    trainer(epochs=6, callbacks=callbacks).fit(model, data())
    return model, callback


@pytest.mark.parametrize("mode", ["latent", "leaky", "hold"])
@pytest.mark.parametrize("when", ["start", "end", "batch_end", "callback"])
def test_averages_within_the_training_step_equal_those_of_an_updater(when, mode):
    foreign, callback = trained(Foreign, mode, when=when)
    _, expected = trained(WithUpdater, mode, when=when)
    assert callback.pruner.kept == expected.pruner.kept
    assert callback.pruner.kept[1] > callback.pruner.kept[0]
    for mine, theirs in zip(callback.pruner.encoders, expected.pruner.encoders, strict=True):
        agreement = mine.masks.xor_fraction(theirs.masks)
        assert agreement < 0.005  # where rounding decides a tie
        for name, value in mine.latents.items():
            same = mine.masks[name] == theirs.masks[name]
            torch.testing.assert_close(
                value[same], theirs.latents[name][same], rtol=1e-3, atol=2e-5
            )
    for layer in masked_layers(foreign.backbone_momentum).values():
        assert not layer.weight[~layer.mask].any()


@pytest.mark.parametrize(
    "name",
    ["backbone_momentum", "teacher", "target_encoder", "encoder_k", "key_encoder", "ema_backbone"],
)
def test_names_that_say_what_it_is(name):
    torch.manual_seed(0)
    model = Foreign(momentum=name)
    callback = sparsify(model, SECTION)
    trainer(epochs=6).fit(model, data())
    assert len(callback.pruner.encoders) == 2
    assert callback.pruner.momentum.module is getattr(model, name)
    n = callback.pruner.online.masks.n
    assert callback.pruner.kept == [round(0.2 * n), round(0.5 * n)]


def test_names_that_are_given():
    torch.manual_seed(0)
    model = Foreign(online="student", momentum="other")
    with pytest.raises(ConfigError, match=r"no attribute 'backbone'.*online=\.\.\."):
        sparsify(model, SECTION)
    with pytest.raises(ConfigError, match=r"'othr'.*momentum=\.\.\..*Did you mean 'other'"):
        sparsify(model, SECTION, online="student", momentum="othr")
    callback = sparsify(model, SECTION, online="student", momentum="other")
    trainer(epochs=6).fit(model, data())
    assert callback.pruner.online.module is model.student
    assert callback.pruner.momentum.module is model.other
    assert not hasattr(model.predictor, "mask")


def test_dots_lead_to_parts_of_parts():
    model = Toy(momentum=False)
    model.student = nn.ModuleDict({"net": model._modules.pop("backbone"), "head": nn.Linear(8, 8)})
    model.teacher = copy.deepcopy(model.student).requires_grad_(False)
    assert find_teacher(model, "student.net") == "teacher.net"


def test_a_frozen_copy_that_nobody_names_gets_a_warning(caplog, monkeypatch):
    model = Toy(momentum=False)
    model.twin = copy.deepcopy(model.backbone)
    model.rest = copy.deepcopy(model.backbone).requires_grad_(False)
    monkeypatch.setattr(logging.getLogger("sparse_ext"), "propagate", True)
    with caplog.at_level(logging.WARNING, "sparse_ext"):
        assert find_teacher(model, "backbone") is None
    assert "'rest' is a frozen network like 'backbone'" in caplog.text
    assert "momentum='rest'" in caplog.text
    assert "twin" not in caplog.text  # it trains: no average
    model.teacher, model.target = tiny_net(), tiny_net()
    with pytest.raises(ConfigError, match="several networks like 'backbone': teacher, target"):
        sparsify(model, SECTION)
    model.target = tiny_net(4)  # of another width
    assert find_teacher(model, "backbone") == "teacher"
