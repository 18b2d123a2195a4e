# SPDX-License-Identifier: MIT
"""SyncCP on groups: updates against brute force, CSI, initial masks (properties 18, 23, 25-27)."""

import math

import numpy as np
import pytest
import torch

from sparse_ext.allocation import budgets
from sparse_ext.config.sections import build
from sparse_ext.masks.mask_set import MaskSet
from sparse_ext.pruning.methods.csi import compare
from sparse_ext.schedules import Clock
from tests.pruning.methods.test_synccp import RAMPING, started
from tests.pruning.toys import pruner_of

pytestmark = pytest.mark.unit

GROUPS = ["2:4", "1:4", "3:8", "block8", "block4-merged", "filter"]


def cut(array, granularity):
    """A weight-shaped array as rows of members, by loops in the order of section 1.7."""
    outs, ins = array.shape[:2]
    flat = array.reshape(outs, ins, -1)
    positions = range(flat.shape[2])
    if granularity == "filter":
        return [flat[o].ravel() for o in range(outs)]
    if ":" in granularity:
        m = int(granularity.split(":")[1])
        steps = range(0, ins, m)
        return [flat[o, i : i + m, k] for o in range(outs) for k in positions for i in steps]
    edge = 4 if "4" in granularity else 8
    tiles = [(o, i) for o in range(0, outs, edge) for i in range(0, ins, edge)]
    if "merged" in granularity:
        return [flat[o : o + edge, i : i + edge].ravel() for o, i in tiles]
    return [flat[o : o + edge, i : i + edge, k].ravel() for k in positions for o, i in tiles]


def worth(tensors, granularity):
    """Mean of magnitudes per group and layer, of filters over that of all in their layer."""
    means = {
        name: np.array(
            [np.abs(row).mean() for row in cut(t.detach().double().numpy(), granularity)]
        )
        for name, t in tensors.items()
    }
    relative = granularity == "filter"
    return {name: v / v.mean() if relative else v for name, v in means.items()}


def whole(masks, granularity):
    """Which groups are kept entirely."""
    return {
        name: np.array([row.all() for row in cut(mask.numpy(), granularity)])
        for name, mask in masks.items()
    }


def top(values, k, allowed=None, least=0):
    """The k largest over all layers, the best `least` of each among them, as bool per group."""

    def safe(name, v):
        return sum(w > v for w, on in zip(values[name], open_[name], strict=True) if on) < least

    open_ = allowed or {name: np.ones(len(row), bool) for name, row in values.items()}
    ranked = sorted(
        (not safe(name, v), -v, i, name, j)
        for i, (name, row) in enumerate(values.items())
        for j, v in enumerate(row)
        if allowed is None or allowed[name][j]
    )
    kept = {name: np.zeros(len(row), bool) for name, row in values.items()}
    for *_, name, j in ranked[:k]:
        kept[name][j] = True
    return kept


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("granularity", GROUPS)
def test_an_update_against_brute_force(granularity, seed):
    """Sections 5.5-5.7: prune globally, prune k more per layer, bring k back by their score."""
    pruner = started({**RAMPING, "granularity": granularity, "final": 0.8}, seed)
    pruner.t = 30
    with torch.no_grad():
        for layer in pruner.online.layers.values():
            layer.shadow.add_(0.1 * torch.randn(layer.shadow.shape)).mul_(~layer.mask)
    magnitude = worth(pruner.online.latents, granularity)
    scores = worth(pruner.online.scores, granularity)
    free = None if ":" in granularity else whole(pruner.online.masks, granularity)
    teacher = worth(pruner.momentum.latents, granularity)
    total = sum(len(row) for row in magnitude.values())
    sparsity = 0.8 + (0.3 - 0.8) * (1 - 3 / 6) ** 3
    p = 0.005 + 0.495 * (1 + math.cos(math.pi * 0.3)) / 2
    least = int(granularity == "filter")
    kept = top(magnitude, round((1 - sparsity) * total), free, least)
    for name, row in kept.items():
        on = sorted(np.flatnonzero(row), key=lambda j: (-magnitude[name][j], j))
        k = math.ceil(p * len(on))
        row[on[len(on) - k :]] = False
        off = sorted(np.flatnonzero(~row), key=lambda j: (-scores[name][j], j))
        row[off[:k]] = True
    latents = {name: value.clone() for name, value in pruner.online.latents.items()}
    assert pruner.after_step()
    found = whole(pruner.online.masks, granularity)
    for name, row in kept.items():
        np.testing.assert_array_equal(found[name], row)
    offline = top(teacher, round((1 - sparsity + 0.3) * total), least=least)
    for name, row in whole(pruner.momentum.masks, granularity).items():
        np.testing.assert_array_equal(row, offline[name])
    for name, mask in pruner.online.masks.items():  # who survives in a pruned group
        rows = zip(
            cut(mask.numpy(), granularity),
            cut(latents[name].abs().numpy(), granularity),
            strict=True,
        )
        for j, (alive, size) in enumerate(rows):
            survivors = int(granularity.split(":")[0]) if ":" in granularity else 0
            assert alive.sum() == (len(alive) if found[name][j] else survivors)
            if not found[name][j] and survivors:
                assert size[alive].min() >= size[~alive].max()
    pruner.check()


@pytest.mark.parametrize("granularity", ["2:4", "1:4"])
def test_in_the_end_every_group_is_nm(granularity):
    """Property 25: at p = 1 no group is dense, and the survivors are chosen anew."""
    pruner = started({**RAMPING, "granularity": granularity})
    n, m = map(int, granularity.split(":"))
    for _ in range(62):
        pruner.after_step()
    for name, mask in pruner.online.masks.items():
        assert all(row.sum() == n for row in cut(mask.numpy(), granularity))
        stored = pruner.online.weights[name].numpy()
        assert all(np.count_nonzero(row) <= n for row in cut(stored, granularity))
    before = pruner.online.masks["5"].clone()
    layer = pruner.online.layers["5"]
    with torch.no_grad():  # a pruned member's last value beats the survivors
        layer.shadow[0, :m, 0, 0] = 9.0 * ~layer.mask[0, :m, 0, 0]
    for _ in range(10):
        pruner.after_step()
    assert not torch.equal(layer.mask[0, :m, 0, 0], before[0, :m, 0, 0])
    assert layer.mask[0, :m, 0, 0].sum() == n
    shares = [pruner.sparsity_of(encoder) for encoder in pruner.encoders]
    assert shares == [1.0, pytest.approx(0.7, abs=1 / pruner.units.total)]


@pytest.mark.parametrize("granularity", GROUPS)
def test_initial_masks_are_nested_erk_on_groups(granularity):
    """Property 23 and section 5.6: random groups, and random survivors in them."""
    pruner = pruner_of(build({"name": "synccp", "granularity": granularity, "initial": 0.5}))
    pruner.start()
    online, momentum = pruner.online.masks, pruner.momentum.masks
    assert not any((online[name] & ~momentum[name]).any() for name in online)
    groups = {name: len(row) for name, row in whole(online, granularity).items()}
    counts = {name: int(row.sum()) for name, row in whole(online, granularity).items()}
    assert counts == budgets.erk(online.shapes, 0.5, groups)
    if ":" in granularity:
        rows = cut(online["5"].numpy(), granularity)
        patterns = {tuple(np.flatnonzero(row)) for row in rows if not row.all()}
        n, m = map(int, granularity.split(":"))
        assert len(patterns) == math.comb(m, n) or len(patterns) > 20


@pytest.mark.parametrize(("granularity", "gap"), [("2:4", 0.15), ("1:4", 0.225), ("block8", 0.3)])
def test_the_gap_of_pseudo_masks_is_measured_on_weights(granularity, gap):
    """Property 18: 100% and 70% of 2:4 groups differ by 0.15 of the weights."""
    pruner = pruner_of(
        build({"name": "synccp", "granularity": granularity}), clock=Clock(200, 20, 10)
    )
    pruner.start()
    a = MaskSet(pruner._pseudo_masks(pruner.online, pruner.config.final))
    b = MaskSet(pruner._pseudo_masks(pruner.momentum, pruner.config.momentum[1]))
    seen = compare(a, b)
    assert seen.gap == pytest.approx(gap, abs=64 / pruner.online.masks.n)
    assert seen.inconsistency == pytest.approx(seen.gap)
    assert seen.chance == pytest.approx(a.density * (1 - b.density) + b.density * (1 - a.density))
    figures = [pruner.end_epoch(epoch) for epoch in (1, 2, 3)]
    assert [f["triggered"] for f in figures] == [0, 0, 1]  # equal encoders: warm-up, then patience


def test_the_rule_of_one_encoder_sees_the_share_of_weights():
    """Of all 2:4 groups half the weights are pruned: chance level is that of 50%."""
    section = {"name": "synccp", "granularity": "2:4", "csi": {"tau_relative": True}}
    pruner = pruner_of(build(section), shared=True)
    assert pruner.csi.tau == pytest.approx(0.1 * 2 * 0.5 * 0.5 / 0.32)


@pytest.mark.parametrize("granularity", ["element", *GROUPS])
def test_oscillation_is_the_changed_share_of_weights(granularity):
    """Eq. 7, from the masks before and after regrowth."""
    pruner = started({**RAMPING, "granularity": granularity, "final": 0.8})
    masks = {}
    swap = pruner.swap
    pruner.swap = lambda encoder, pruned, fraction: (
        masks.update(before=pruner.units.expand(pruned, encoder)) or swap(encoder, pruned, fraction)
    )
    pruner.after_step()
    for name, share in pruner.oscillation.items():
        changed = masks["before"][name] ^ pruner.online.masks[name]
        assert share == pytest.approx(changed.double().mean().item())
    assert max(pruner.oscillation.values()) > 0.05
