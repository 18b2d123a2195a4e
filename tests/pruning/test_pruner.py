# SPDX-License-Identifier: MIT
"""Periods and ramps, initial masks, budgets, GMP (properties 20, 22, 23 without Lightning)."""

import logging

import numpy as np
import pytest
import torch

from solo.errors import CheckpointError, ConfigError
from sparse_ext.allocation import budgets as allocation
from sparse_ext.config.sections import build
from sparse_ext.masks.encoder import Encoder, InvariantError
from sparse_ext.masks.masking import measured, patch, patch_named
from sparse_ext.pruning.pruner import Pruner
from sparse_ext.pruning.scores.random_draws import draw
from sparse_ext.schedules import Clock, Ramp, default_period
from sparse_ext.training import resume
from tests.pruning.toys import pruner_of, tiny_net

pytestmark = pytest.mark.unit

N = 8 * 8 * 9 + 16 * 8 * 9 + 8 * 16  # two convolutions and the linear layer of the tiny net


def test_only_the_stem_stays_dense():
    online = pruner_of(build("gmp"), shared=True).online
    assert list(online.layers) == ["3", "5", "9"]
    assert online.masks.n == N


@pytest.mark.parametrize(("steps", "period"), [(195_000, 1000), (1e6, 1000), (900, 4), (3, 1)])
def test_default_period_is_in_proportion(steps, period):
    assert default_period(int(steps)) == period


def test_gmp_ramp_ends_in_time_and_lands_on_the_target():
    """Steps 0..99; round(0.69 * 100) = 69; period 10: t0 = 0, n = 6."""
    pruner = pruner_of(build({"name": "gmp", "update_period": 10, "final": 0.9}), shared=True)
    pruner.start()
    seen = []
    for t in range(100):
        assert pruner.t == t
        if pruner.after_step():
            seen.append((t, pruner.kept[0]))
    expected = [round((1 - (0.9 - 0.9 * (1 - j / 6) ** 3)) * N) for j in range(7)]
    assert seen == [(10 * j, kept) for j, kept in enumerate(expected)]
    assert pruner.kept == [round(0.1 * N)]


def test_gmp_removes_the_smallest_and_nothing_comes_back():
    """Against numpy: after each update the kept set is the top of the previously kept ones."""
    pruner = pruner_of(build({"name": "gmp", "update_period": 1, "final": 0.9}), shared=True)
    pruner.start()
    alive = np.ones(N, bool)
    for _ in range(80):
        with torch.no_grad():
            for layer in pruner.online.layers.values():
                layer.weight.add_(0.01 * torch.randn_like(layer.weight))  # revival is not allowed
                layer.apply_mask()
        w = torch.cat([w.flatten() for w in pruner.online.weights.values()]).numpy()
        pruner.after_step()
        now = torch.cat([m.flatten() for m in pruner.online.masks.values()]).numpy()
        assert not (now & ~alive).any()
        assert np.abs(w[now]).min() >= np.abs(w[alive & ~now]).max(initial=0)
        alive = now


@pytest.mark.parametrize("rule", ["erk", "er", "uniform"])
def test_gmp_per_layer_budgets(rule):
    config = build({"name": "gmp", "allocation": rule, "update_period": 1, "initial": 0.2})
    pruner = pruner_of(config)
    pruner.start()
    assert pruner.kept == [round(0.8 * N)] * 2
    for _ in range(100):
        pruner.after_step()
    budgets = getattr(allocation, rule)(pruner.online.masks.shapes, 1 - 0.8)
    counts = {name: int(mask.sum()) for name, mask in pruner.online.masks.items()}
    assert sum(counts.values()) == round(0.2 * N)
    assert all(abs(counts[name] - budgets[name]) <= 1 for name in budgets)


def test_initial_masks_are_nested_erk_and_depend_on_the_seed_only():
    """Property 23, and 0.6: no global random state is read."""
    config = build({"name": "synccp", "initial": 0.5, "gap": 0.3, "final": 0.9})
    pruner = pruner_of(config)
    torch.manual_seed(123)
    before = torch.get_rng_state()
    pruner.start()
    assert torch.equal(torch.get_rng_state(), before)
    online, momentum = pruner.online.masks, pruner.momentum.masks
    assert not any((online[name] & ~momentum[name]).any() for name in online)
    kept = {name: int(mask.sum()) for name, mask in online.items()}
    assert kept == allocation.erk(online.shapes, 0.5)
    assert pruner.kept == [round(0.5 * N), round(0.8 * N)]
    again = pruner_of(config)
    again.start()
    assert again.online.masks.checksum() == online.checksum()
    other = pruner_of(config, seed=1)
    other.start()
    assert other.online.masks.checksum() != online.checksum()


def test_permutations_depend_on_every_argument():
    one = draw(1, "layer", "initial", 0, 50)
    assert sorted(one.tolist()) == list(range(50))
    for other in [
        (2, "layer", "initial", 0),
        (1, "b", "initial", 0),
        (1, "layer", "x", 0),
        (1, "layer", "initial", 1),
    ]:
        assert not torch.equal(one, draw(*other, 50))


def test_initial_masks_keep_latents():
    pruner = pruner_of(build("synccp"))
    latents = {name: value.clone() for name, value in pruner.online.latents.items()}
    pruner.start()
    for name, value in pruner.online.latents.items():
        assert torch.equal(value, latents[name])
    pruner.online.check(kept=pruner.kept[0])


def test_masks_from_before_are_never_drawn_again():
    pruner = pruner_of(build("synccp"))
    mask = pruner.online.masks["3"].clone()
    mask[0] = False
    pruner.online.change({**pruner.online.masks, "3": mask}, "zero")
    pruner.start()
    assert torch.equal(pruner.online.masks["3"], mask)


def test_offline_budget_is_exact_though_equal_to_online():
    """Property 22: theta == xi, and positions outside M_theta are in M_xi."""
    pruner = pruner_of(build({"name": "synccp", "csi": "off", "update_period": 1}))
    pruner.start()
    for _ in range(100):
        pruner.after_step()
        s_online, s_momentum = (1 - kept / N for kept in pruner.kept)
        assert abs(s_online - s_momentum - 0.3) <= 1 / N + 1e-12
    assert pruner.kept == [round(0.2 * N), round(0.5 * N)]
    outside = [(~pruner.online.masks[k] & m).any() for k, m in pruner.momentum.masks.items()]
    assert any(outside)


def test_a_period_longer_than_the_ramp():
    with pytest.raises(ConfigError, match=r"one update period of 80 steps.*lower sparse.update_p"):
        pruner_of(build({"name": "gmp", "update_period": 80}))
    with pytest.raises(ConfigError, match="as late as step 30 and must end by step 69"):
        pruner_of(build({"name": "synccp", "update_period": 40}))
    assert pruner_of(build({"name": "synccp", "update_period": 34})).ramp is None
    with pytest.raises(ConfigError, match=r"as late as step 500 .*start the ramp earlier, or"):
        pruner_of(build({"name": "synccp", "csi": "epoch:50"}))


def test_a_run_too_short_is_told(caplog):
    with caplog.at_level(logging.WARNING, "sparse_ext"):
        pruner_of(build("gmp"), clock=Clock(steps=1, epochs=1, steps_per_epoch=1))
    assert "will not be reached" in caplog.text


def test_the_ramp_may_end_with_the_run():
    """ramp_end = 1: the last update must still be one that happens."""
    pruner = pruner_of(build({"name": "gmp", "ramp_end": 1.0, "update_period": 7}), shared=True)
    pruner.start()
    for _ in range(100):
        pruner.after_step()
    assert pruner.kept == [round(0.2 * N)]


def test_the_base_pruner_changes_nothing():
    online = Encoder(patch(tiny_net(), build("gmp")))
    pruner = Pruner(build("gmp"), online, None, Clock(10, 1, 10))
    pruner.start()
    assert not any(pruner.after_step() for _ in range(10))
    assert pruner.kept == [N]


def test_state_must_fit():
    pruner = pruner_of(build("synccp"))
    pruner.start()
    state = resume.take(pruner)
    with pytest.raises(CheckpointError, match=r"sparse\.name=synccp.*this run has gmp"):
        resume.restore(pruner_of(build("gmp")), state)
    with pytest.raises(CheckpointError, match="lost its masks"):
        resume.restore(pruner_of(build("synccp")), state)
    with pytest.raises(CheckpointError, match=r"they differ in \['3', '5', '9'\]"):
        resume.restore(pruner_of(build("synccp"), width=4), state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"final": 0.9}, r"trained with sparse\.final=0\.8, sparse\.momentum_final=0\.5, this run"),
        (
            {"gap": 0.2},
            r"sparse\.momentum_initial=0\.0.*this run has sparse\.momentum_initial=0\.1",
        ),
        ({"granularity": "2:4", "final": 0.8}, r"sparse\.granularity=element, this run has .*=2:4"),
    ],
)
def test_a_run_goes_on_with_its_own_goal(change, message):
    pruner = pruner_of(build("synccp"))
    pruner.start()
    with pytest.raises(CheckpointError, match=message):
        resume.restore(pruner_of(build({"name": "synccp", **change})), resume.take(pruner))


def test_a_chosen_set_of_layers():
    net = patch(tiny_net(), build({"name": "gmp", "exclude": ["9"], "stem_dense": False}))
    assert list(Encoder(net).layers) == ["0", "3", "5"]
    with pytest.raises(ConfigError, match="masks already"):
        patch(net, build("gmp"))
    with pytest.raises(ConfigError, match="nothing to prune"):
        patch(torch.nn.Sequential(torch.nn.ReLU()), build("gmp"))


def test_rebuilding_names_what_is_missing():
    net = patch_named(tiny_net(), ["5"])
    assert list(Encoder(net).layers) == ["5"]
    assert list(Encoder(patch_named(net, ["3", "5"])).layers) == ["3", "5"]
    with pytest.raises(CheckpointError, match=r"mask for 'layer1\.0\.conv1'"):
        patch_named(tiny_net(), ["layer1.0.conv1"])


def test_measured_sparsity_counts_what_is_there():
    assert measured(tiny_net()) == {}
    net = patch(tiny_net(), build("gmp"))
    net[3].mask[:4] = False
    with pytest.raises(Exception, match="no effect"):
        measured(net)
    net[3].apply_mask()
    figures = measured(net)
    assert figures["kept_weights"] == N - 4 * 8 * 9
    assert figures["sparsity"] == pytest.approx(4 * 8 * 9 / N)
    assert figures["backbone_sparsity"] == pytest.approx(4 * 8 * 9 / (N + 8 * 3 * 9))


def test_broken_invariants_are_found():
    pruner = pruner_of(build("synccp"))
    pruner.start()
    pruner.online.check(kept=pruner.kept[0])
    with pytest.raises(InvariantError, match="instead of"):
        pruner.online.check(kept=1)
    layer = pruner.online.layers["3"]
    layer.shadow[layer.mask] = 1
    with pytest.raises(InvariantError, match="shadow"):
        pruner.online.check()
    layer.weight.data.fill_(1)
    with pytest.raises(InvariantError, match="pruned weight"):
        pruner.online.check()


def test_the_ramp_survives_in_the_state():
    pruner = pruner_of(build({"name": "gmp", "update_period": 3}))
    pruner.start()
    for _ in range(20):
        pruner.after_step()
    again = pruner_of(build({"name": "gmp", "update_period": 3}))
    for mine, theirs in zip(again.encoders, pruner.encoders, strict=True):
        mine.change(dict(theirs.masks), "zero")
    resume.restore(again, resume.take(pruner))
    assert (again.t, again.ramp) == (20, Ramp(0, 3, 23))
