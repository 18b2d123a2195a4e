# SPDX-License-Identifier: MIT
"""Runs that go on with smaller encoders: same loss, resumable, evaluable."""

import copy
import re

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from solo.checkpoints.loading import load_encoder
from solo.errors import ConfigError
from solo.utils.lars import LARS
from solo.utils.momentum import MomentumUpdater
from sparse_ext import sparsify
from sparse_ext.cost.per_layer import count
from sparse_ext.training.mask_figures import epoch_figures
from tests.pruning.toys import data, trainer
from tests.training.test_resume import Forward, Recording, everything, same

pytestmark = pytest.mark.unit

SECTION = {
    "name": "gmp",
    "granularity": "filter",
    "coupled": True,
    "final": 0.5,
    "update_period": 2,
    "ramp_end": 0.2,
    "slim_at": 28,
}


class Block(nn.Module):
    """A residual network small enough to train in a test."""

    def __init__(self, width=8):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width, momentum=0.7)
        )
        self.conv1 = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(2 * width, momentum=0.7)
        self.conv2 = nn.Conv2d(2 * width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width, momentum=0.7)
        self.conv3 = nn.Conv2d(width, width, 3, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x):
        x = self.stem(x).relu()
        x = (x + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))).relu()
        return self.pool(self.conv3(x)).flatten(1)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, 0.9, weight_decay=1e-4),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-3),
    "lars": lambda p: LARS(p, 0.1, momentum=0.9, eta=0.02, clip_lr=True),
}


def model(optimizer="sgd", momentum=True, seed=0):
    torch.manual_seed(seed)
    toy = Recording(momentum=False, optimizer=OPTIMIZERS[optimizer])
    toy.backbone = Block()
    if momentum:
        toy.momentum_backbone = copy.deepcopy(toy.backbone).requires_grad_(False)
        toy.momentum_updater = MomentumUpdater(0.9, 0.9)
    return toy


class Losses(Callback):
    def __init__(self):
        self.losses, self.widths, self.evaluated = [], [], []

    def on_train_batch_start(self, trainer, module, batch, index):
        module.eval()
        with torch.no_grad():
            self.evaluated.append(module.backbone(batch[0]))
        module.train()

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        self.losses.append(float(outputs["loss"]))
        self.widths.append(module.backbone.conv1.out_channels)


def run(section, steps=40, toy=None, loader=None, **kwargs):
    toy = toy or model()
    callback = sparsify(toy, section)
    watch = Losses()
    fit = trainer(max_epochs=-1, max_steps=steps, callbacks=[watch])
    fit.fit(toy, loader or data(batches=10, size=8), **kwargs)
    return toy, callback, watch, fit


@pytest.mark.parametrize("momentum", [True, False])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lars"])
def test_the_loss_is_the_same_before_and_after(optimizer, momentum):
    """Against the same run with full encoders, at the step of slimming and in eval mode."""
    slim = run(SECTION, toy=model(optimizer, momentum))[2]
    full = run({**SECTION, "slim_at": None}, toy=model(optimizer, momentum))[2]
    assert slim.losses[:28] == full.losses[:28]
    assert slim.widths[27] == 16
    assert slim.widths[28] <= 9
    assert slim.losses[28] == pytest.approx(full.losses[28], rel=1e-5)
    torch.testing.assert_close(slim.evaluated[28], full.evaluated[28], rtol=1e-4, atol=1e-5)
    assert slim.losses[-1] == pytest.approx(full.losses[-1], rel=0.05)


def test_all_that_belongs_to_a_channel_shrinks():
    toy, callback, watch, fit = run(SECTION)
    assert callback.pruner.slimmed is not None
    width = watch.widths[-1]
    optimizer = fit.optimizers[0]
    for net in (toy.backbone, toy.momentum_backbone):
        assert net.conv1.weight.shape[0] == net.bn1.running_var.shape[0] == width
        assert net.conv2.weight.shape[1] == net.conv2.mask.shape[1] == width
    own = {p for g in optimizer.param_groups for p in g["params"]}
    assert set(toy.parameters()) == own
    assert set(optimizer.state) <= own
    for parameter, state in optimizer.state.items():
        assert state["momentum_buffer"].shape == parameter.shape


def test_optimizer_state_of_what_stays_is_what_it_was():
    states = {}

    class Keep(Callback):
        def on_train_batch_end(self, trainer, module, *_):
            if trainer.global_step == 28:
                states["before"] = (
                    trainer.optimizers[0]
                    .state[module.backbone.conv1.weight]["momentum_buffer"]
                    .clone()
                )
                states["alive"] = module.backbone.conv1.mask.flatten(1).any(1)

        def on_before_zero_grad(self, trainer, module, optimizer):
            if trainer.global_step == 28 and "after" not in states:
                buffer = optimizer.state[module.backbone.conv1.weight]["momentum_buffer"]
                states["after"] = buffer.clone()

    toy = model()
    sparsify(toy, SECTION)
    trainer(max_epochs=-1, max_steps=30, callbacks=[Keep()]).fit(toy, data(batches=10, size=8))
    kept = states["before"][states["alive"]]
    assert states["after"].shape != states["before"].shape
    found = [any(torch.equal(row, mine) for mine in states["after"]) for row in kept]
    assert all(found)


def test_a_channel_alive_in_the_momentum_encoder_stays_in_both():
    """A gap: the momentum encoder keeps more, and the widths follow it."""
    _, callback, watch, _ = run({**SECTION, "momentum_final": 0.25})
    alive = [e.masks["conv1"].flatten(1).any(1).sum().item() for e in callback.pruner.encoders]
    assert alive[0] < alive[1] <= watch.widths[-1] < 16


def test_resume_is_exact(tmp_path):
    """From before slimming and from after it; bit by bit."""
    straight, _, watch, straight_run = run(SECTION)
    for at in (20, 28, 34):
        toy = model()
        sparsify(toy, SECTION)
        first = trainer(max_epochs=-1, max_steps=40)
        stop = Stop(at, tmp_path / f"{at}.ckpt")
        first.callbacks.append(stop)
        first.fit(toy, data(batches=10, size=8))
        loader = Forward(data(batches=10, size=8))
        loader.skip = at % 10
        path = tmp_path / f"{at}.ckpt"
        again, _, later, again_run = run(SECTION, loader=loader, ckpt_path=path)
        assert later.losses == watch.losses[at:]
        same(everything(again, again_run), everything(straight, straight_run))


class Stop(Callback):
    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


def test_a_slim_checkpoint_is_evaluated_like_any_other(tmp_path):
    toy, _, _, fit = run(SECTION)
    fit.save_checkpoint(tmp_path / "slim.ckpt")
    state = torch.load(tmp_path / "slim.ckpt", weights_only=True)
    x = torch.randn(2, 3, 8, 8)
    for name in ("online", "momentum"):
        report = load_encoder(Block(), {"state_dict": state["state_dict"]}, name)
        own = toy.backbone if name == "online" else toy.momentum_backbone
        assert torch.equal(report.backbone.eval()(x), own.eval()(x))
        assert report.backbone.conv1.out_channels == toy.backbone.conv1.out_channels


def figures(callback):
    pruner = callback.pruner
    return epoch_figures(pruner, pruner.weight_sparsities(), {}) | callback.meter.figures()


def test_figures_are_relative_to_the_full_encoder():
    callback = run(SECTION)[1]
    mine, full = figures(callback), figures(run({**SECTION, "slim_at": None})[1])
    assert mine["macs_dense"] == full["macs_dense"]
    assert mine["macs_effective"] < full["macs_effective"]
    assert mine["online_sparsity"] >= full["online_sparsity"]
    left = callback.pruner.online.masks.nnz
    assert mine["online_sparsity"] == pytest.approx(1 - left / callback.pruner.slimmed.before)


def test_masks_are_final_and_channels_with_fresh_statistics_go_later():
    """Batch norm's running statistics need time; the next look at them finds more."""
    slow = model()
    for module in slow.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.3
    _, callback, watch, _ = run({**SECTION, "slim_at": 20, "update_period": 4}, 80, slow)
    widths = sorted(set(watch.widths), reverse=True)
    assert len(widths) > 2
    assert callback.pruner.slimmed.at > 20


@pytest.mark.parametrize("budget", ["macs:0.5", "latency:0.6"])
def test_a_budget_is_what_the_slim_encoder_costs(budget, monkeypatch):
    """By a score that any method averages; a clock that ticks with MACs."""
    from sparse_ext.pruning import measuring

    macs = count(Block(), 8).macs_dense
    timed = lambda nets, shape: [count(net, shape).macs_dense for net in nets]  # noqa: E731
    monkeypatch.setattr(measuring, "seconds", timed)
    section = {k: v for k, v in SECTION.items() if k != "final"}
    more = {"budget": budget, "score": "mean_taylor", "stem_dense": False}
    toy, callback, _, fit = run({**section, **more}, toy=model(momentum=False))
    share = count(toy.backbone, 8).macs_dense / macs
    assert 0 <= float(budget[-3:]) - share < 0.1
    assert callback.pruner.slimmed is not None
    assert toy.backbone.conv1.score.shape == toy.backbone.conv1.weight.shape
    assert fit.global_step == 40


@pytest.mark.parametrize("section", [{"name": "synccp", "csi": "off"}, {"name": "granet_ssl"}])
def test_methods_with_buffers_of_their_own_slim(section):
    """The online encoder has a running mean of gradients, which the momentum encoder lacks."""
    gap = {"gap": 0.0} if section["name"] == "synccp" else {"momentum_final": 0.5}
    _, callback, watch, _ = run({**SECTION, **section, **gap, "debug": True})
    assert callback.pruner.slimmed is not None
    assert watch.widths[-1] < 16
    for encoder in callback.pruner.encoders:
        for layer in encoder.layers.values():
            for name in ("mask", "shadow", "score"):
                assert getattr(layer, name, layer.weight).shape == layer.weight.shape


@pytest.mark.parametrize("place", ["in place", "around"])
def test_compiled_encoders_slim(place):
    """They are compiled anew for their new widths; losses are those of eager encoders."""
    shapes = []

    def backend(graph, inputs):
        shapes.append({tuple(x.shape) for x in inputs})
        return graph.forward

    toy = model()
    for name in ("backbone", "momentum_backbone"):
        net = getattr(toy, name)
        if place == "in place":
            net.compile(backend=backend)
        else:
            setattr(toy, name, torch.compile(net, backend=backend))
    eager, watch = run(SECTION)[2], run(SECTION, toy=toy)[2]
    np.testing.assert_allclose(watch.losses, eager.losses, rtol=1e-6)
    assert (16, 8, 3, 3) in shapes[0]
    assert (watch.widths[-1], 8, 3, 3) in shapes[-1]


def test_memory_that_is_held_is_said(caplog):
    """Weights, masks and statistics of both encoders, and momentum, counted by hand."""
    toy, _, _, fit = run(SECTION)
    found = re.search(r"([\d.]+) MB of weights.* instead of ([\d.]+) MB", caplog.text)
    encoders = [toy.backbone, toy.momentum_backbone]
    tensors = [t for net in encoders for t in net.state_dict().values()]
    tensors += [s["momentum_buffer"] for s in fit.optimizers[0].state.values()]
    now = sum(t.nbytes for t in tensors) / 1e6
    assert float(found[1]) == pytest.approx(now, abs=0.006)
    assert float(found[1]) < float(found[2])


def test_nothing_to_slim_is_said(caplog):
    section = {**SECTION, "final": 0.0, "slim_at": 12}
    watch = run(section, 16)[2]
    assert watch.widths[-1] == 16
    assert "Nothing to slim" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slim_at": 5}, "sparsity grows until step 8"),
        ({"slim_at": 0.1}, "is step 4, but"),
        ({"slim_at": 40}, "step 40 of a run of 40"),
    ],
)
def test_when(change, message):
    with pytest.raises(ConfigError, match=message):
        run({**SECTION, **change})


def test_living_weights_cannot_shrink():
    section = {"name": "sdclr", "granularity": "filter", "final": 0.5, "slim_at": 20}
    with pytest.raises(ConfigError, match=r"sparse\.name=sdclr keeps them alive"):
        run(section, toy=model(momentum=False))
