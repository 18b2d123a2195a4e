# SPDX-License-Identifier: MIT
"""SyncCP's updates, score and start (properties 16, 17, 19, 20, 22, 24 on a pruner)."""

import math

import numpy as np
import pytest
import torch

from sparse_ext.config.sections import build
from sparse_ext.schedules import Clock
from sparse_ext.training import resume
from tests.pruning.toys import pruner_of

pytestmark = pytest.mark.unit

RAMPING = {"name": "synccp", "csi": "off", "update_period": 10}


def started(section, seed=0, **kwargs):
    """A pruner at its initial masks, with random scores and weights that have moved."""
    pruner = pruner_of(build(section), seed=seed, **kwargs)
    pruner.start()
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for encoder in pruner.encoders:
            for layer in encoder.layers.values():
                layer.weight.add_(0.05 * torch.randn(layer.weight.shape, generator=g))
                layer.apply_mask()
        for layer in pruner.online.layers.values():
            layer.score.copy_(torch.rand(layer.score.shape, generator=g))
    return pruner


def flat(tensors):
    return {name: t.detach().flatten().numpy().copy() for name, t in tensors.items()}


def reference(weight, mask, score, kept, p):
    """One online update by brute force: sort, cut, sort, cut (section 5.5)."""
    order = sorted(
        (
            (-abs(w), i, name, j)
            for i, name in enumerate(weight)
            for j, w in enumerate(weight[name])
            if mask[name][j]
        )
    )
    new = {name: np.zeros_like(m) for name, m in mask.items()}
    for _, _, name, j in order[:kept]:
        new[name][j] = True
    for name, m in new.items():
        on = sorted(np.flatnonzero(m), key=lambda j: (-abs(weight[name][j]), j))
        k = math.ceil(p * len(on))
        m[on[len(on) - k :]] = False
        off = sorted(np.flatnonzero(~m), key=lambda j: (-score[name][j], j))
        m[off[:k]] = True
    return new


@pytest.mark.parametrize("seed", range(3))
def test_an_update_against_brute_force(seed):
    pruner = started(RAMPING, seed)
    pruner.t = 30
    weight, mask = flat(pruner.online.weights), flat(pruner.online.masks)
    j, n = 3, 6
    sparsity = 0.8 + (0.3 - 0.8) * (1 - j / n) ** 3
    p = 0.005 + 0.495 * (1 + math.cos(math.pi * 0.3)) / 2
    kept = round((1 - sparsity) * pruner.online.masks.n)
    expected = reference(weight, mask, flat(pruner.online.scores), kept, p)
    latents = np.concatenate(list(flat(pruner.momentum.latents).values()))
    assert pruner.after_step()
    for name, m in pruner.online.masks.items():
        np.testing.assert_array_equal(m.flatten().numpy(), expected[name])
    teacher = np.concatenate(list(flat(pruner.momentum.masks).values()))
    kept = round((1 - sparsity + 0.3) * len(latents))
    np.testing.assert_array_equal(
        np.flatnonzero(teacher), np.sort(np.argsort(-np.abs(latents), kind="stable")[:kept])
    )
    assert abs(pruner.kept[0] - (1 - sparsity) * len(latents)) <= 0.5


def test_a_planted_score_decides_who_returns():
    """Property 16: 1e6 on a pruned weight brings it back, on a kept weight it does nothing."""
    pruner = started(RAMPING)
    layer = pruner.online.layers["3"]
    pruned, kept = (~layer.mask).nonzero()[0], layer.mask.nonzero()
    weakest = min(kept, key=lambda i: layer.weight[tuple(i)].abs())
    strongest = max(kept, key=lambda i: layer.weight[tuple(i)].abs())
    layer.score[tuple(pruned)] = 1e6
    twin = started(RAMPING)
    twin.online.layers["3"].score[tuple(pruned)] = 1e6
    twin.online.layers["3"].score[tuple(strongest)] = 1e6
    twin.after_step()
    pruner.after_step()
    assert layer.mask[tuple(pruned)]
    assert layer.mask[tuple(strongest)]
    assert twin.online.masks.checksum() == pruner.online.masks.checksum()
    assert weakest is not None


@pytest.mark.parametrize(("init", "expect"), [("latent", True), ("zero", False)])
def test_value_of_regrown_weights(init, expect):
    pruner = started({**RAMPING, "regrow_init": init})
    layer = pruner.online.layers["5"]
    old, shadow, weight = layer.mask.clone(), layer.shadow.clone(), layer.weight.detach().clone()
    pruner.after_step()
    grown, both = layer.mask & ~old, layer.mask & old
    assert grown.any()
    start = shadow[grown] if expect else torch.zeros(int(grown.sum()))
    assert torch.equal(layer.weight[grown], start)
    assert not layer.shadow[grown].any()
    assert torch.equal(layer.weight[both], weight[both])
    assert torch.equal(layer.shadow[old & ~layer.mask], weight[old & ~layer.mask])


@pytest.mark.parametrize(
    ("gamma", "expected"), [(0.9, [0.1, 0.39]), (0.1, [0.9, 2.79]), (0.99, [0.01, 0.0399])]
)
def test_score_of_the_sequence_one_three(gamma, expected):
    """Property 17, Eq. 17 with its readings."""
    pruner = pruner_of(build({**RAMPING, "score_momentum": gamma}))
    for value, score in zip((1.0, -3.0), expected, strict=True):
        for layer in pruner.online.layers.values():
            layer.weight.grad = torch.full_like(layer.weight, value)
        pruner.observe(torch.tensor(True))
        for layer in pruner.online.layers.values():
            torch.testing.assert_close(layer.score, torch.full_like(layer.score, score))


def test_score_of_a_constant_gradient():
    pruner = pruner_of(build(RAMPING))
    for layer in pruner.online.layers.values():
        layer.weight.grad = torch.full_like(layer.weight, 2.0)
    for _ in range(30):
        pruner.observe(torch.tensor(True))
    for layer in pruner.online.layers.values():
        expected = torch.full_like(layer.score, 2.0 * (1 - 0.9**30))
        torch.testing.assert_close(layer.score, expected)
        layer.weight.grad.fill_(float("inf"))
    before = {k: v.clone() for k, v in pruner.online.scores.items()}
    pruner.observe(torch.tensor(False))
    assert all(torch.equal(v, before[k]) for k, v in pruner.online.scores.items())


def test_pruned_weights_return_by_regrowth_only():
    """`mp_on: masked` never looks at a latent; `latent` lets a large one back by magnitude."""
    for mp_on, comes_back in (("masked", False), ("latent", True)):
        pruner = started({**RAMPING, "mp_on": mp_on, "drop_start": 0.0, "drop_end": 0.0})
        layer = pruner.online.layers["5"]
        old = layer.mask.clone()
        layer.shadow[~old] = 100.0
        pruner.after_step()
        assert bool((layer.mask & ~old).any()) is comes_back


def test_offline_regrow_uses_the_online_score():
    plain, regrown = started(RAMPING), started({**RAMPING, "offline_regrow": True})
    for pruner in (plain, regrown):
        layer = pruner.momentum.layers["5"]
        weakest = layer.weight.detach().abs().flatten().argmin()
        layer.weight.detach().view(-1)[weakest] = 1e-9
        pruner.t = 60
        pruner.online.layers["5"].score.view(-1)[weakest] = 1e6
        pruner.after_step()
    assert not plain.momentum.masks["5"].view(-1)[weakest]
    assert regrown.momentum.masks["5"].view(-1)[weakest]
    assert plain.kept == regrown.kept


@pytest.mark.parametrize("goes_on", [True, False])
def test_after_the_ramp(goes_on):
    pruner = started({**RAMPING, "regrow_after_ramp": goes_on})
    due = [pruner.t for _ in range(100) if pruner.after_step()]
    assert due == ([t + 1 for t in range(0, 100, 10)] if goes_on else [1, 11, 21, 31, 41, 51, 61])
    assert pruner.kept == [round(0.2 * pruner.online.masks.n), round(0.5 * pruner.online.masks.n)]


def test_without_sync_the_gap_grows_from_nothing():
    """GraNet-SSL's schedule: 0/0 -> 0.8/0.5, each on its own cubic."""
    pruner = pruner_of(build({**RAMPING, "sync": False, "score": "instant"}))
    pruner.start()
    n, seen = pruner.online.masks.n, []
    assert pruner.kept == [n, n]
    for t in range(70):
        if pruner.wants_gradients():
            assert t % 10 == 0  # no work in between
        if pruner.after_step():
            seen.append(tuple(pruner.kept))
    rest = [(1 - j / 6) ** 3 for j in range(7)]
    assert seen == [(round(n * (0.2 + 0.8 * r)), round(n * (0.5 + 0.5 * r))) for r in rest]


def test_an_instant_score_is_the_gradient_of_the_update():
    pruner = pruner_of(build({**RAMPING, "score": "instant"}))
    for value in (5.0, -2.0):
        for layer in pruner.online.layers.values():
            layer.weight.grad = torch.full_like(layer.weight, value)
        pruner.observe(torch.tensor(True))
    assert all((score == 2).all() for score in pruner.online.scores.values())


def test_the_first_update_of_a_late_start_has_its_gradient():
    """The deadline falls on an update: its own gradient must have been looked at."""
    section = {"name": "synccp", "score": "instant", "update_period": 5}
    pruner = pruner_of(build(section), clock=Clock(50, 1, 50))
    pruner.start()
    looked = []
    for t in range(50):
        pruner.begin_batch(0)
        looked += [t] if pruner.wants_gradients() else []
        pruner.after_step()
    assert looked == [15, 20, 25, 30, 35, 40, 45]


def test_scope_layer_gives_every_layer_the_same_sparsity():
    pruner = started({**RAMPING, "scope": "layer"})
    for _ in range(70):
        pruner.after_step()
    for encoder, sparsity in zip(pruner.encoders, (0.8, 0.5), strict=True):
        for mask in encoder.masks.values():
            assert abs(int(mask.sum()) - (1 - sparsity) * mask.numel()) < 1
        assert encoder.masks.nnz == round((1 - sparsity) * encoder.masks.n)


def test_sparser_offline():
    section = {**RAMPING, "sparser": "offline", "initial": 0.0, "final": 0.5}
    pruner = started(section)
    n = pruner.online.masks.n
    assert pruner.kept == [n, round(0.7 * n)]
    for _ in range(100):
        pruner.after_step()
    assert pruner.kept == [round(0.5 * n), round(0.2 * n)]


def epochs(pruner, count):
    """Run `count` epochs of ten steps in which nothing is learnt; the step of the trigger."""
    for epoch in range(1, count + 1):
        for _ in range(10):
            pruner.after_step()
        figures = pruner.end_epoch(epoch)
        if figures["triggered"]:
            return pruner.t, figures
    return None, figures


def test_equal_encoders_start_after_warm_up_and_patience():
    """x = 0 from the start; warm-up 1 epoch (5% of 20), patience 2: after epoch 3."""
    pruner = pruner_of(build("synccp"), clock=Clock(200, 20, 10))
    pruner.start()
    t, figures = epochs(pruner, 20)
    assert t == 30
    n = pruner.online.masks.n
    assert figures["inconsistency"] == pytest.approx(0.3, abs=1 / n)
    assert abs(figures["excess"]) < 1e-6
    assert pruner.ramp.t0 == 30
    assert pruner.ramp.end <= round(0.69 * 200)
    assert pruner.kept == [round(0.7 * n), n]  # masks are still the initial ones


def test_the_ramp_starts_at_a_multiple_of_the_period():
    pruner = pruner_of(
        build({"name": "synccp", "update_period": 7, "csi": "epoch:2"}), clock=Clock(200, 20, 10)
    )
    pruner.start()
    assert epochs(pruner, 20)[0] == 20
    assert pruner.ramp.t0 == 21
    assert pruner.ramp.n == (138 - 21) // 7


def test_a_run_of_one_epoch_starts_within_it():
    """No epoch ends in time: the deadline then counts in steps."""
    pruner = pruner_of(build("synccp"), clock=Clock(50, 1, 50))
    pruner.start()
    for _ in range(50):
        pruner.begin_batch(0)
        pruner.after_step()
    assert pruner.ramp.t0 == 15
    assert pruner.kept[0] == round(0.2 * pruner.online.masks.n)


def test_constant_sparsity_never_triggers():
    pruner = pruner_of(build({"name": "synccp", "final": 0.3}))
    pruner.start()
    before = pruner.online.masks.checksum()
    assert epochs(pruner, 10)[0] is None
    assert pruner.online.masks.checksum() == before


def test_shared_encoder_waits_until_its_mask_rests():
    """Property 24: compared with itself an epoch ago; pseudo-masks survive in the state."""
    config = build({"name": "synccp", "csi": {"warmup_epochs": 0}})
    pruner = pruner_of(config, clock=Clock(1000, 100, 10), shared=True)
    pruner.start()
    first = pruner.end_epoch(1)
    assert "inconsistency" not in first
    with torch.no_grad():
        for layer in pruner.online.layers.values():
            layer.weight.copy_(torch.randn_like(layer.weight))
            layer.apply_mask()
    second = pruner.end_epoch(2)
    assert second["inconsistency"] > 0.1
    assert second["triggered"] == 0
    again = pruner_of(config, clock=Clock(1000, 100, 10), shared=True)
    for mine, theirs in zip(
        again.online.layers.values(), pruner.online.layers.values(), strict=True
    ):
        mine.load_state_dict(theirs.state_dict())
    resume.restore(again, resume.take(pruner))
    for each in (pruner, again):
        third = each.end_epoch(3)
        assert third["inconsistency"] == 0
        assert third["triggered"] == 1
    assert pruner.sparsities() == [0.3]


def test_pseudo_masks_are_never_applied():
    pruner = pruner_of(build("synccp"))
    pruner.start()
    before = pruner.online.masks.checksum(), pruner.momentum.masks.checksum()
    weights = {k: v.clone() for k, v in pruner.online.weights.items()}
    pruner.end_epoch(1)
    assert (pruner.online.masks.checksum(), pruner.momentum.masks.checksum()) == before
    assert all(torch.equal(v, weights[k]) for k, v in pruner.online.weights.items())


def test_oscillation_is_the_share_that_regrowth_changed():
    """Eq. 7 at drop fraction p: at most 2 ceil(p nnz) positions per layer, and 0 at p = 0."""
    still = started({**RAMPING, "drop_start": 0.0, "drop_end": 0.0})
    still.after_step()
    assert set(still.oscillation.values()) == {0.0}
    pruner = started(RAMPING)
    pruner.after_step()
    kept = {name: int(mask.sum()) for name, mask in pruner.online.masks.items()}
    for name, value in pruner.oscillation.items():
        mask = pruner.online.masks[name]
        assert 0 <= value <= 2 * math.ceil(0.5 * kept[name]) / mask.numel()
    assert max(pruner.oscillation.values()) > 0.1
