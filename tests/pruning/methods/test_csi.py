# SPDX-License-Identifier: MIT
"""The trigger: bounds of the inconsistency, and when it fires (properties 18, 19, 24)."""

import math

import pytest
import torch

from sparse_ext.allocation.budgets import global_topk
from sparse_ext.config.sections import CSIConfig
from sparse_ext.pruning.methods.csi import CSI, Comparison, compare

pytestmark = pytest.mark.unit

SHAPES = {"a": (40, 30), "b": (300,), "c": (10, 10, 5)}
N = 2000
GAP = 0.3


def latents(seed):
    g = torch.Generator().manual_seed(seed)
    return {k: torch.randn(s, generator=g) * (1 + i) for i, (k, s) in enumerate(SHAPES.items())}


def masks(values, sparsity):
    return global_topk({k: v.abs() for k, v in values.items()}, round((1 - sparsity) * N))


def test_identical_latents_differ_by_the_gap_exactly():
    seen = compare(masks(latents(0), 0.8), masks(latents(0), 0.5))
    assert seen.inconsistency == pytest.approx(GAP, abs=1 / N)
    assert seen.gap == seen.inconsistency
    assert seen.excess == 0


def test_unrelated_encoders_reach_chance_level():
    """I_rand = d(1-d') + d'(1-d) within four standard deviations, so x is about 1."""
    seen = compare(masks(latents(0), 0.8), masks(latents(1), 0.5))
    chance = 0.2 * 0.5 + 0.5 * 0.8
    assert seen.chance == pytest.approx(chance, abs=1e-9)
    # equal layer scales are not given here: compare within one layer for independence
    flat = [
        {"w": torch.cat([v.flatten() / (1 + i) for i, v in enumerate(latents(s).values())])}
        for s in (0, 1)
    ]
    seen = compare(masks(flat[0], 0.8), masks(flat[1], 0.5))
    sigma = math.sqrt(chance * (1 - chance) / N)
    assert abs(seen.inconsistency - chance) < 4 * sigma
    assert 0.6 < seen.excess < 1.4


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.5, 2.0])
def test_brute_force_and_bounds(noise):
    mine, other = latents(0), latents(1)
    other = {k: mine[k] + noise * other[k] for k in mine}
    a, b = masks(mine, 0.8), masks(other, 0.5)
    seen = compare(a, b)
    xor = sum(int(x != y) for k in a for x, y in zip(a[k].flatten(), b[k].flatten(), strict=True))
    assert seen.inconsistency == xor / N
    assert seen.inconsistency >= seen.gap
    assert seen.layers["b"] == int((a["b"] != b["b"]).sum()) / 300


def test_the_fraction_is_global_not_a_mean_of_layers():
    a, b = masks(latents(0), 0.8), masks(latents(1), 0.5)
    seen, turned = compare(a, b), compare(dict(reversed(a.items())), b)
    assert turned.inconsistency == seen.inconsistency
    mean = sum(seen.layers.values()) / 3
    assert abs(mean - seen.inconsistency) > 1e-3


def at(x, gap=GAP, chance=0.5):
    """A comparison with normalised excess x."""
    return Comparison(gap + x * (chance - gap), gap, chance)


def run(csi, xs, first=1):
    """Epoch and reason of the first decision to start."""
    for epoch, x in enumerate(xs, first):
        reason = csi.decide(epoch, at(x))
        if reason:
            return epoch, reason
    return None


def test_no_trigger_at_initialisation():
    """x = 0 at first, because both encoders are equal then (A1)."""
    csi = CSI(CSIConfig(warmup_epochs=2), epochs=100, final=0.8)
    assert run(csi, [0.0, 0.0, 0.5, 0.5, 0.5]) is None
    assert csi.streak == 0


def test_fires_at_the_fourth_after_warm_up():
    csi = CSI(CSIConfig(warmup_epochs=2), epochs=100, final=0.8)
    assert run(csi, [0.0, 0.0, 0.5, 0.1, 0.01, 0.01]) == (6, "csi")
    assert [row[0] for row in csi.history] == [1, 2, 3, 4, 5, 6]
    csi = CSI(CSIConfig(warmup_epochs=0), epochs=100, final=0.8)
    assert run(csi, [0.01, 0.5, 0.01, 0.01]) == (4, "csi")


@pytest.mark.parametrize("epochs", [10, 11, 100])
def test_never_small_fires_at_the_deadline(epochs):
    csi = CSI(CSIConfig(), epochs=epochs, final=0.8)
    assert run(csi, [0.5] * epochs) == (math.ceil(0.3 * epochs), "deadline")


def test_warm_up_is_ten_epochs_or_five_percent():
    assert [CSI(CSIConfig(), e, 0.8).warmup for e in (1000, 200, 100, 20, 1)] == [10, 10, 5, 1, 1]
    assert CSI(CSIConfig(warmup_epochs=3), 1000, 0.8).warmup == 3


def test_literal_mode_documents_a1():
    """Identical encoders fire at once; an excess of one element never fires."""
    config = CSIConfig(mode="literal")
    a, b = masks(latents(0), 0.8), masks(latents(0), 0.5)
    assert CSI(config, 100, 0.8).decide(1, compare(a, b)) == "csi"
    outside = next(iter((~b["a"]).nonzero()))
    inside = next(iter(a["a"].nonzero()))
    b["a"][tuple(inside)], b["a"][tuple(outside)] = False, True  # one kept weight elsewhere
    csi = CSI(config, 100, 0.8)
    assert all(csi.decide(epoch, compare(a, b)) is None for epoch in range(1, 101))


def test_absolute_mode():
    csi = CSI(CSIConfig(mode="absolute", eps=0.01, warmup_epochs=0, patience=1), 100, 0.8)
    assert csi.decide(1, Comparison(0.311, 0.3, 0.5)) is None
    assert csi.decide(2, Comparison(0.309, 0.3, 0.5)) == "csi"


@pytest.mark.parametrize(("mode", "fires"), [("epoch:3", 3), ("epoch:0.3", 6), ("epoch:0.31", 7)])
def test_fixed_epoch(mode, fires):
    csi = CSI(CSIConfig(mode=mode), epochs=20, final=0.8)
    assert run(csi, [0.0] * 20) == (fires, "epoch")


def test_shared_encoder_compares_consecutive_epochs():
    """I_e < tau after warm-up, patience 1; unchanged weights give 0."""
    csi = CSI(CSIConfig(warmup_epochs=1), epochs=100, final=0.8, shared=True)
    mask = masks(latents(0), 0.8)
    assert compare(mask, mask).inconsistency == 0
    assert csi.decide(1, None) is None
    assert csi.decide(2, Comparison(0.2, 0.0, 0.32)) is None
    assert csi.decide(3, Comparison(0.1, 0.0, 0.32)) is None
    assert csi.decide(4, Comparison(0.099, 0.0, 0.32)) == "csi"


def test_relative_tau():
    assert CSI(CSIConfig(tau_relative=True), 10, 0.8, shared=True).tau == pytest.approx(0.1)
    tau = CSI(CSIConfig(tau_relative=True), 10, 0.9, shared=True).tau
    assert tau == pytest.approx(0.1 * 0.18 / 0.32)
    assert CSI(CSIConfig(), 10, 0.9, shared=True).tau == 0.1


def test_state_round_trip():
    csi = CSI(CSIConfig(warmup_epochs=0), epochs=100, final=0.8)
    run(csi, [0.5, 0.01])
    again = CSI(CSIConfig(warmup_epochs=0), epochs=100, final=0.8)
    again.load_state_dict(csi.state_dict())
    assert again.decide(3, at(0.01)) == "csi"
    assert again.history == [*csi.history, [3, pytest.approx(0.302), pytest.approx(0.01)]]
