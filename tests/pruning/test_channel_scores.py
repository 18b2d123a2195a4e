# SPDX-License-Identifier: MIT
"""Scores of channels, which of them are compared, and budgets of what the network costs."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from solo.errors import CheckpointError, ConfigError
from sparse_ext.config.sections import build, to_dict
from sparse_ext.cost.per_layer import count
from sparse_ext.masks.channels.costs import Macs
from sparse_ext.masks.channels.cutting import remove_
from sparse_ext.masks.channels.removal import shrink_
from sparse_ext.masks.channels.tracing import Channels, random_units
from sparse_ext.masks.encoder import Encoder
from sparse_ext.pruning import measuring
from sparse_ext.pruning.registry import build_pruner, method_class
from sparse_ext.schedules import Clock
from sparse_ext.training import resume
from tests.export.nets import encoder, masked
from tests.pruning.toys import pruner_of

pytestmark = pytest.mark.unit
CLOCK = Clock(steps=9, epochs=3, steps_per_epoch=3)
SECTION = {
    "name": "gmp",
    "granularity": "filter",
    "coupled": True,
    "stem_dense": False,
    "update_period": 2,
}


def pruner_on(net, section, momentum=True):
    config = build(section)
    encoders = [Encoder(net), Encoder(copy.deepcopy(net))]
    needs = method_class(config).needs(config, False)
    for one in encoders:
        if needs.latents:
            one.add_buffer("shadow")
    if needs.mean_gradient:
        encoders[0].add_buffer("score")
    return build_pruner(config, encoders[0], encoders[1] if momentum else None, CLOCK, 0)


def train(pruner, steps=CLOCK.steps, shape=(3, 32, 32), seed=1):
    """Steps with random gradients; returns those of every step."""
    measuring.measure(pruner, shape)
    pruner.start()
    generator, seen = torch.Generator().manual_seed(seed), []
    for _ in range(steps):
        for layer in pruner.online.layers.values():
            layer.weight.grad = torch.randn(layer.weight.shape, generator=generator)
        seen.append({n: m.weight.grad.clone() for n, m in pruner.online.layers.items()})
        if pruner.wants_gradients():
            pruner.observe(torch.tensor(True))
        pruner.after_step()
        pruner.check()
    return seen


# -- scores ------------------------------------------------------------------------------------


def test_taylor_of_a_channel_is_the_squared_change_of_the_loss():
    """Against autograd: one factor per channel of a stream, at 1; and (g w)^2 of single weights."""
    net = masked(encoder(width=8))
    pruner = pruner_on(net, {**SECTION, "score": "taylor", "stem_dense": True}, momentum=False)
    generator = torch.Generator().manual_seed(0)
    pruner.gradient = {
        n: torch.randn(w.shape, generator=generator) for n, w in pruner.online.weights.items()
    }
    found = pruner.values(pruner.online)["layer2.0.conv2"]
    space = pruner.units.spaces["layer2.0.conv2"]
    factor = torch.ones(space.size, dtype=torch.float64, requires_grad=True)
    change = torch.zeros((), dtype=torch.float64)
    for name, weight in pruner.online.weights.items():
        scaled, grad = weight.detach().double(), pruner.gradient[name].double()
        if name in space.producers:
            scaled = scaled * factor.view(-1, 1, 1, 1)
        if name in space.consumers:
            scaled = scaled * factor.view(1, -1, 1, 1)
        change = change + (grad * scaled).sum()  # the loss at first order, of these weights
    change.backward()
    np.testing.assert_allclose(found.numpy(), factor.grad.square().numpy(), rtol=1e-4)
    single = pruner_of(build({"name": "gmp", "score": "taylor"}), shared=True)
    single.gradient = {n: torch.full_like(w, 3.0) for n, w in single.online.weights.items()}
    for name, value in single.values(single.online).items():
        torch.testing.assert_close(value, (3 * single.online.weights[name].detach()).square())


def test_mean_taylor_follows_the_gradients_of_all_steps():
    """Any method has that mean; against numpy."""
    section = {"name": "gmp", "score": "mean_taylor", "final": 0.6, "update_period": 4}
    config = build({**section, "ramp_end": 0.5})
    assert method_class(config).needs(config, True).mean_gradient
    pruner = pruner_of(config, CLOCK, shared=True)
    pruner.start()
    generator = torch.Generator().manual_seed(2)
    mean = {n: np.zeros(w.shape) for n, w in pruner.online.weights.items()}
    for _ in range(7):
        for name, layer in pruner.online.layers.items():
            layer.weight.grad = torch.randn(layer.weight.shape, generator=generator)
            mean[name] = 0.9 * mean[name] + 0.1 * layer.weight.grad.abs().numpy()
        assert pruner.wants_gradients()
        pruner.observe(torch.tensor(True))
        pruner.after_step()
    for name, value in pruner.scores(pruner.online).items():
        weight = pruner.online.latents[name].detach().numpy()
        np.testing.assert_allclose(value.numpy(), abs(weight) * mean[name], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "score"),
    [
        ("synccp", "taylor"),
        ("granet", "mean_taylor"),
        ("oneshot", "mean_taylor"),
        ("gmp", "taylor"),
    ],
)
def test_every_method_ranks_channels_by_them(name, score):
    csi = {"csi": "off", "gap": 0.2} if name == "synccp" else {}
    at = {"prune_at": 0.5} if name == "oneshot" else {"update_period": 2}
    section = {k: v for k, v in SECTION.items() if k != "update_period"}
    pruner = pruner_on(
        masked(encoder(width=8), stem_dense=False),
        {**section, "name": name, "score": score, "final": 0.5, **at, **csi},
    )
    train(pruner)
    assert pruner.units.count(pruner.online.masks) == pruner.units.budget(0.5)


# -- what is compared --------------------------------------------------------------------------


def test_isomorphic_prunes_the_same_share_of_each_kind():
    """Brute force: sorted values of all channels of a kind, each over its space's mean."""
    net = masked(encoder(width=16), stem_dense=False)
    pruner = pruner_on(net, {**SECTION, "final": 0.5, "allocation": "isomorphic"})
    units, values = pruner.units, pruner.values(pruner.online)
    kept = pruner.best(pruner.online, 0.5)
    kinds = {}
    for name, kind in units.kinds.items():
        kinds.setdefault(kind, []).append(name)
    inner = next(names for names in kinds.values() if "layer1.0.conv1" in names)
    assert "layer3.1.conv1" in inner
    assert "layer2.0.conv2" not in inner
    for names in kinds.values():
        size, left = sum(units.sizes[n] for n in names), sum(int(kept[n].sum()) for n in names)
        assert abs(left - 0.5 * size) <= 1
        relative = np.concatenate([(values[n] / values[n].mean()).numpy() for n in names])
        flat = np.concatenate([kept[n].numpy() for n in names])
        assert relative[flat].min() >= relative[~flat].max()
    assert sum(int(k.sum()) for k in kept.values()) == units.budget(0.5)


def test_isomorphic_of_single_weights_is_by_kernel():
    pruner = pruner_of(build({"name": "gmp", "allocation": "isomorphic", "final": 0.7}))
    kept = pruner.best(pruner.online, 0.7)
    linear = [n for n, w in pruner.online.weights.items() if w.ndim == 2]
    shares = [
        sum(int(kept[n].sum()) for n in names) / sum(kept[n].numel() for n in names)
        for names in (linear, [n for n in kept if n not in linear])
    ]
    assert shares == pytest.approx([0.3, 0.3], abs=0.02)


@pytest.mark.parametrize("name", ["gmp", "oneshot", "synccp"])
def test_isomorphic_in_a_run(name):
    where = {"scope": "isomorphic", "csi": "off"} if name == "synccp" else {}
    where |= {"allocation": "isomorphic"} if name != "synccp" else {}
    section = {k: v for k, v in SECTION.items() if name != "oneshot" or k != "update_period"}
    net = masked(encoder(width=8), stem_dense=False)
    pruner = pruner_on(net, {**section, "name": name, "final": 0.6, **where})
    train(pruner)
    assert pruner.units.count(pruner.online.masks) == pruner.units.budget(0.6)


# -- budgets -----------------------------------------------------------------------------------

NETS = {
    "resnet": lambda: encoder(width=8),
    "vit": lambda: encoder("vit_tiny", img_size=32, patch_size=16, depth=1),
}


@pytest.mark.parametrize("name", NETS)
def test_costs_are_those_of_the_network_that_is_left(name):
    """Foretold against counted after removal, at two sizes of the image."""
    net = NETS[name]()
    channels = Channels(net)
    gone = random_units(channels, 0.4).numpy()
    small = copy.deepcopy(net)
    remove_(channels, [small], gone)
    for size in (32, 48) if name == "resnet" else (32,):
        macs = Macs(channels, (3, size, size))
        assert macs(np.zeros(channels.units, bool)) == count(net, size).macs_dense
        assert macs(gone) == count(small, size).macs_dense


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("gmp", "params"),
        ("gmp", "macs"),
        ("oneshot", "macs"),
        ("synccp", "macs"),
        ("random", "macs"),
    ],
)
def test_a_budget_is_what_is_left_of_the_network(name, kind):
    """After real removal of what a run has masked; one channel more would be too much."""
    csi = {"csi": "off", "gap": 0.2} if name == "synccp" else {}
    section = {k: v for k, v in SECTION.items() if name in ("gmp", "synccp", "granet")
               or k != "update_period"}  # fmt: skip
    net = masked(encoder(width=8), stem_dense=False)
    full = count(net, 32)
    pruner = pruner_on(net, {**section, "name": name, "budget": f"{kind}:0.4", **csi})
    train(pruner)
    units = pruner.units
    kept = units.kept(pruner.online.masks)
    small = copy.deepcopy(net)
    remove_(units.channels, [small], units.going(kept))
    left = count(small, 32)
    share = (
        left.parameters / full.parameters if kind == "params" else left.macs_dense / full.macs_dense
    )
    assert 0.35 < share <= 0.4
    assert units.cost(kept) == pytest.approx(share)
    if name == "synccp":
        other = units.cost(units.kept(pruner.momentum.masks))
        assert 0.54 < other <= 0.6
    if name == "synccp":  # gradients have to reach what may come back: readers keep their weights
        return
    report = shrink_([net])
    assert report.carriers == 0
    assert count(net, 32).macs_dense == left.macs_dense


def test_bisection_stops_at_the_last_channel_that_fits():
    net = masked(encoder(width=8), stem_dense=False)
    pruner = pruner_on(net, {**SECTION, "budget": "macs:0.5"})
    units, values = pruner.units, pruner.values(pruner.online)
    kept = pruner.best(pruner.online, 0.5)
    left = sum(int(k.sum()) for k in kept.values())
    more = units.largest(values, 1 - (left + 1) / units.total)
    assert sum(int(k.sum()) for k in more.values()) == left + 1
    assert units.cost(kept) <= 0.5 < units.cost(more)


def test_seconds_become_macs_once(monkeypatch, caplog):
    """With a clock that ticks with MACs to the power of two, and a resumed run."""
    net = masked(encoder(width=8), stem_dense=False)
    full, looks = count(net, 32).macs_dense, []

    def seconds(nets, shape):
        looks.append(shape)
        return [(count(net, shape).macs_dense / full) ** 2 for net in nets]

    monkeypatch.setattr(measuring, "seconds", seconds)
    section = {**SECTION, "budget": "latency:0.25"}
    pruner = pruner_on(net, section)
    train(pruner)
    assert looks
    assert set(looks) == {(3, 32, 32)}
    left = pruner.units.cost(pruner.units.kept(pruner.online.masks))
    assert left == pytest.approx(0.5, abs=0.03)
    assert left <= 0.5
    assert pruner.finals[1] == pruner.finals[0]
    state, looks[:] = resume.take(pruner), []
    again = pruner_on(net, section, momentum=True)
    again.momentum.change(pruner.momentum.masks.clone(), "zero")
    resume.restore(again, state)
    measuring.measure(again, (3, 32, 32))
    assert not looks
    assert again.finals == pruner.finals
    other = pruner_on(net, {**SECTION, "budget": "macs:0.25"})
    with pytest.raises(CheckpointError, match=r"sparse\.budget=latency:0\.25.*macs:0\.25"):
        resume.restore(other, state)


def test_seconds_are_measured():
    """A network of twice the layers takes longer; modes stay."""
    small = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 8, 3))
    large = nn.Sequential(nn.Conv2d(3, 64, 3), *[nn.Conv2d(64, 64, 3) for _ in range(6)]).eval()
    a, b = measuring.seconds([small, large], (3, 32, 32))
    assert 0 < a < b < math.inf
    assert small.training
    assert not large.training


def test_a_slow_clock_is_a_named_error(monkeypatch):
    monkeypatch.setattr(measuring, "seconds", lambda nets, shape: [1.0 for _ in nets])
    pruner = pruner_on(masked(encoder(width=8)), {**SECTION, "budget": "latency:0.5"})
    with pytest.raises(ConfigError, match=r"budget=latency:0\.5: no smaller encoder.*Raise"):
        measuring.measure(pruner, (3, 32, 32))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"budget": "mac:0.5"}, r"'mac' is nothing that a network costs\. Did you mean 'macs'"),
        ({"budget": "macs"}, r"budget=macs: behind the colon stands the share of the mult.*macs:0"),
        ({"budget": "params:1.5"}, r"above 0 and at most 1, such as params:0\.5"),
        ({"budget": "macs:0.5", "final": 0.7}, r"sparse\.final=0\.7 are two goals"),
        ({"budget": "macs:0.5", "coupled": False}, r"set sparse\.coupled=true"),
        ({"budget": "macs:0.5", "name": "fixed"}, r"sparse\.budget=macs:0\.5 has no effect"),
        ({"allocation": "isomorph"}, "Did you mean 'isomorphic'"),
    ],
)
def test_configuration(section, message):
    whole = {**SECTION, **section}
    if whole["name"] == "fixed":
        whole.pop("update_period")
    with pytest.raises(ConfigError, match=message):
        build(whole)


def test_a_budget_survives_the_round_trip():
    config = build({**SECTION, "budget": "macs:0.3"})
    assert (config.final, config.spending) == (0.7, ("macs", 0.3))
    assert build(to_dict(config)) == config


def test_a_budget_below_what_must_stay_is_named_before_training():
    net = masked(encoder(width=8))
    with pytest.raises(ConfigError, match=r"0\.01 of the network's costs.*cannot go.*puts out"):
        pruner_on(net, {**SECTION, "stem_dense": True, "budget": "macs:0.01"})
