# SPDX-License-Identifier: MIT
"""Coupled units: layers on one stream decide together, and what is pruned can be removed."""

import pytest
import torch

from solo.errors import ConfigError
from sparse_ext.config.sections import build
from sparse_ext.masks.channels.removal import shrink_
from sparse_ext.masks.channels.tracing import Channels
from sparse_ext.masks.encoder import Encoder
from sparse_ext.pruning.coupled_units import CoupledUnits
from sparse_ext.pruning.registry import build_pruner, method_class
from sparse_ext.schedules import Clock
from tests.export.nets import encoder, features, masked

pytestmark = pytest.mark.unit
CLOCK = Clock(steps=15, epochs=3, steps_per_epoch=5)


def units_of(net, granularity="filter"):
    return CoupledUnits(granularity, Encoder(net), net)


def pruner_on(net, section):
    """A pruner on a patched net and, where its method has one, a momentum copy."""
    import copy

    config = build(section)
    encoders = [Encoder(net), Encoder(copy.deepcopy(net))]
    for one in encoders:
        if method_class(config).needs(config, False).latents:
            one.add_buffer("shadow")
    if method_class(config).needs(config, False).mean_gradient:
        encoders[0].add_buffer("score")
    pruner = build_pruner(config, *encoders, CLOCK, 0)
    pruner.start()
    return pruner


def test_scores_are_means_over_all_writers_and_readers():
    """Against loops over the layers of one stream."""
    net = masked(encoder(width=8))
    values = {n: w.abs() for n, w in Encoder(net).weights.items()}
    pooled = units_of(net).pool(values)["layer2.0.conv2"]
    writers = ["layer2.0.conv2", "layer2.0.downsample.0", "layer2.1.conv2"]
    readers = ["layer2.1.conv1", "layer3.0.conv1", "layer3.0.downsample.0"]
    for channel in (0, 5, 15):
        parts = [values[n][channel].flatten() for n in writers]
        parts += [values[n][:, channel].flatten() for n in readers]
        assert pooled[channel].item() == pytest.approx(torch.cat(parts).mean().item(), rel=1e-5)


def test_spaces_that_cannot_be_emptied_are_no_units():
    units = units_of(masked(encoder(width=8)))
    assert "layer4.0.conv2" not in units.sizes  # the features
    assert "layer1.0.conv2" not in units.sizes  # the stem stays dense
    assert units.sizes["layer4.1.conv1"] == 64
    assert units.total == 8 * 2 + 16 * 2 + 16 + 32 * 2 + 32 + 64 * 2


@pytest.mark.parametrize("granularity", ["filter", "block8"])
def test_masks_are_whole_channels_and_survive_the_round_trip(granularity):
    net = masked(encoder(width=16), granularity=granularity)
    units, generator = units_of(net, granularity), torch.Generator().manual_seed(0)
    kept = {n: torch.rand(k, generator=generator) < 0.5 for n, k in units.sizes.items()}
    for one in kept.values():
        one[0] = True
    masks = units.expand(kept, Encoder(net))
    assert all(torch.equal(kept[n], again) for n, again in units.kept(masks).items())
    assert units.fit(masks)
    rows = masks["layer3.0.conv1"].flatten(1).any(1)
    each = 8 if granularity == "block8" else 1
    assert torch.equal(rows, kept["layer3.0.conv1"].repeat_interleave(each))
    columns = masks["layer3.0.conv2"].transpose(0, 1).flatten(1).any(1)
    wanted = torch.equal(columns, kept["layer3.0.conv1"].repeat_interleave(each))
    assert wanted == (granularity == "block8")
    masks["layer3.0.conv1"][0, 0] ^= True
    assert not units.fit(masks)


@pytest.mark.parametrize("granularity", ["filter", "block8"])
@pytest.mark.parametrize("name", ["gmp", "synccp", "granet", "random", "oneshot"])
def test_every_method_prunes_channels_that_slimming_removes(name, granularity):
    net = masked(encoder(width=16 if granularity == "block8" else 8), granularity=granularity)
    csi = {"csi": "off", "gap": 0.2} if name == "synccp" else {}
    section = {"name": name, "granularity": granularity, "final": 0.5, "coupled": True, **csi}
    period = {} if name in ("random", "oneshot") else {"update_period": 2}
    pruner = pruner_on(net, {**section, **period})
    generator = torch.Generator().manual_seed(1)
    for _ in range(CLOCK.steps):
        for layer in pruner.online.layers.values():
            layer.weight.grad = torch.randn(layer.weight.shape, generator=generator)
        if pruner.wants_gradients():
            pruner.observe(torch.tensor(True))
        pruner.after_step()
        pruner.check()
    assert pruner.units.count(pruner.online.masks) == round(0.5 * pruner.units.total)
    with torch.no_grad():  # what has just been regrown is zero
        for layer in pruner.online.layers.values():
            layer.weight.copy_(0.05 * torch.randn(layer.weight.shape) * layer.mask)
    before, widths = features(net), pruner.units.count(pruner.online.masks)
    sizes = dict(pruner.units.sizes)
    step = pruner.units.step
    report = shrink_([net])
    left = {name: report.widths.get(name, (0, k * step))[1] for name, k in sizes.items()}
    assert widths * step <= sum(left.values()) <= widths * step + report.carriers
    torch.testing.assert_close(features(net), before, rtol=1e-4, atol=1e-4)
    if granularity == "block8":
        assert report.carriers == 0  # readers have lost their weights too


def test_no_space_is_emptied():
    """All but one unit of a space far below the others; scale of a space does not matter."""
    units = units_of(masked(encoder(width=8)))
    values = {name: torch.rand(n) + 1 for name, n in units.sizes.items()}
    values["layer3.0.conv1"] = torch.full((32,), 1e-6)
    values["layer3.0.conv1"][7] = 1.0
    kept = units.largest(values, 0.5)
    assert kept["layer3.0.conv1"].nonzero().tolist() == [[7]]
    assert sum(int(k.sum()) for k in kept.values()) == units.budget(0.5)
    scaled = {name: value * 10.0**i for i, (name, value) in enumerate(values.items())}
    again = units.largest(scaled, 0.5)
    assert all(torch.equal(kept[name], again[name]) for name in kept)
    only = {name: torch.ones(n, dtype=torch.bool) for name, n in units.sizes.items()}
    only["layer3.0.conv1"][7] = False
    kept = units.largest(values, 0.5, only)
    assert kept["layer3.0.conv1"].sum() == 1
    assert not kept["layer3.0.conv1"][7]


def test_initial_masks_keep_something_everywhere():
    units = units_of(masked(encoder(width=16), granularity="block8"), "block8")
    for sparsity in (0.3, 0.5):
        counts = units.allocate("erk", sparsity)
        assert min(counts.values()) >= 1
        assert sum(counts.values()) == units.budget(sparsity)


def test_what_stays_is_said_before_training(caplog):
    section = {"name": "gmp", "granularity": "filter", "coupled": True}
    units = pruner_on(masked(encoder(width=8)), section).units
    assert f"{units.total} groups of channels can go, of {len(units.sizes)} kinds" in caplog.text
    assert "layer4.0.conv2: is what the network puts out" in caplog.text
    assert "conv1: conv1 stays dense" in caplog.text


def test_errors():
    with pytest.raises(ConfigError, match=r"sparse\.coupled=True removes channels.*filter or bloc"):
        build({"name": "gmp", "coupled": True})
    with pytest.raises(ConfigError, match=r"sparse\.slim_at=0\.8 removes channels.*2:4"):
        build({"name": "gmp", "granularity": "2:4", "slim_at": 0.8})
    with pytest.raises(ConfigError, match=r"sparse\.slim_at=1\.5 is neither"):
        build({"name": "gmp", "granularity": "filter", "slim_at": 1.5})
    net = masked(encoder(width=8), granularity="block8")
    section = {"name": "gmp", "granularity": "block8", "coupled": True, "final": 0.9}
    with pytest.raises(ConfigError, match=r"each of the \d+ channel spaces keeps at least one"):
        pruner_on(net, section)
    flat = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Softmax(1), torch.nn.Linear(8, 2))
    with pytest.raises(ConfigError, match=r"no channel of this Sequential.*softmax"):
        units_of(masked(flat, stem_dense=False))


def test_spaces_follow_the_network_as_it_is():
    """After slimming the graph has the new widths."""
    net = masked(encoder(width=8))
    net.layer1[0].conv1.mask[:4] = False
    net.layer1[0].conv1.apply_mask()
    with torch.no_grad():
        net.layer1[0].bn1.bias.fill_(-2)
    shrink_([net])
    assert {s.name: s.size for s in Channels(net).spaces}["layer1.0.conv1"] == 4
