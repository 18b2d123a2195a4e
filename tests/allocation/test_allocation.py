# SPDX-License-Identifier: MIT
"""Budgets against an independent numpy computation and published ratios."""

import math
from fractions import Fraction

import numpy as np
import pytest

from solo.errors import ConfigError
from sparse_ext.allocation import budgets
from tests.allocation.shapes import macs_and_shapes

pytestmark = pytest.mark.unit

SPARSITIES = (0.3, 0.5, 0.8, 0.9, 0.95, 0.965)


def erk_by_bisection(shapes, density):
    """Kept weights per layer, found by solving sum min(1, eps raw) n = d N for eps directly."""
    n = np.array([np.prod(s) for s in shapes.values()], dtype=np.float64)
    raw = np.array([np.sum(s) for s in shapes.values()]) / n
    low, high = 0.0, 1 / raw.min()
    for _ in range(200):
        eps = (low + high) / 2
        if (np.minimum(1, eps * raw) * n).sum() < density * n.sum():
            low = eps
        else:
            high = eps
    wished = np.minimum(1, high * raw) * n
    kept = np.floor(wished + 1e-6)
    missing = round(density * n.sum()) - int(kept.sum())
    order = np.argsort(-(np.round(wished - kept, 6)), kind="stable")
    kept[order[:missing]] += 1
    return dict(zip(shapes, kept.astype(int).tolist(), strict=True)), high


@pytest.mark.parametrize("name", ["resnet18_cifar", "resnet50"])
@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_erk_equals_independent_computation(name, sparsity):
    _, shapes = macs_and_shapes(name)
    kept = budgets.erk(shapes, 1 - sparsity)
    expected, _ = erk_by_bisection(shapes, 1 - sparsity)
    assert kept == expected
    n = sum(math.prod(s) for s in shapes.values())
    assert sum(kept.values()) == round((1 - sparsity) * n)
    assert all(0 < kept[layer] <= math.prod(shapes[layer]) for layer in shapes)
    assert all(type(k) is int for k in kept.values())


@pytest.mark.parametrize(
    ("sparsity", "eps", "dense", "macs"), [(0.8, 281.306, 8, 0.508), (0.9, 132.531, 3, 0.249)]
)
def test_erk_spot_values_resnet18(sparsity, eps, dense, macs):
    per_layer, shapes = macs_and_shapes("resnet18_cifar")
    assert sum(math.prod(s) for s in shapes.values()) == 11_159_232
    densities = budgets.erk_densities(shapes, 1 - sparsity)
    assert sum(d == 1 for d in densities.values()) == dense
    raw = 2 * 512 + 6
    assert densities["layer4.1.conv2"] * 512 * 512 * 9 / raw == pytest.approx(eps, abs=1e-3)
    share = sum(densities[n] * per_layer[n] for n in shapes) / sum(per_layer.values())
    assert share == pytest.approx(macs, abs=5e-4)
    if sparsity == 0.8:
        kept = budgets.erk(shapes, 1 - sparsity)
        assert (kept["layer2.0.conv1"], kept["layer4.1.conv2"]) == (55_699, 289_745)


@pytest.mark.parametrize(
    ("sparsity", "ratio"), [(0.8, 0.414), (0.9, 0.242), (0.95, 0.122), (0.965, 0.085)]
)
def test_erk_inference_cost_of_resnet50(sparsity, ratio):
    macs, shapes = macs_and_shapes("resnet50")
    kept = budgets.erk(shapes, 1 - sparsity)
    cost = sum(macs[n] * kept[n] / math.prod(shapes[n]) for n in shapes) / sum(macs.values())
    assert cost == pytest.approx(ratio, abs=0.002)


def test_erk_of_one_layer_and_of_density_one():
    assert budgets.erk({"a": (4, 3, 3, 3)}, 0.25) == {"a": 27}
    shapes = {"a": (4, 4), "b": (8, 2, 3, 3)}
    assert budgets.erk(shapes, 1.0) == {"a": 16, "b": 144}


def test_erk_in_groups():
    shapes = {"a": (64, 64, 3, 3), "b": (128, 64, 3, 3), "c": (512, 512, 3, 3)}
    groups = {name: math.prod(s) // 64 for name, s in shapes.items()}
    kept = budgets.erk(shapes, 0.2, groups)
    assert sum(kept.values()) == round(0.2 * sum(groups.values()))
    weights = budgets.erk(shapes, 0.2)
    assert all(abs(kept[n] - weights[n] / 64) < 1 for n in shapes)


def test_er_ignores_the_kernel():
    shapes = {"a": (64, 32, 1, 1), "b": (64, 32, 5, 5)}
    densities = budgets.erk_densities(shapes, 0.5, dims=2)
    assert densities["a"] == densities["b"]
    kept = budgets.er({"a": (10, 10, 3, 3), "b": (100, 100, 3, 3)}, 0.1)
    assert sum(kept.values()) == round(0.1 * 90_900)
    # eps * (20/100): a is ten times as dense as b (20/100 against 200/10000).
    assert kept["a"] / 900 == pytest.approx(10 * kept["b"] / 90_000, rel=0.01)


def test_uniform_is_uniform_and_exact():
    shapes = {"a": (3, 3), "b": (7, 11), "c": (5, 5)}
    kept = budgets.uniform(shapes, 0.37)
    assert sum(kept.values()) == round(0.37 * 111)
    assert all(abs(kept[n] - 0.37 * math.prod(s)) < 1 for n, s in shapes.items())


def test_exact_budgets_largest_fraction_then_layer_order():
    sizes = {"a": 10, "b": 10, "c": 10, "d": 2}
    densities = {"a": 0.25, "b": 0.28, "c": 0.25, "d": 1.0}  # 2.5, 2.8, 2.5, 2
    assert budgets.exact_budgets(densities, sizes, 9) == {"a": 2, "b": 3, "c": 2, "d": 2}
    assert budgets.exact_budgets(densities, sizes, 10) == {"a": 3, "b": 3, "c": 2, "d": 2}
    assert budgets.exact_budgets(densities, sizes, 11) == {"a": 3, "b": 3, "c": 3, "d": 2}


def test_exact_budgets_refuses_what_does_not_add_up():
    with pytest.raises(ConfigError, match=r"ask for 5\.0 of 10 units, but the total is 9"):
        budgets.exact_budgets({"a": 0.5}, {"a": 10}, 9)
    with pytest.raises(ConfigError, match="total is 4"):
        budgets.exact_budgets({"a": 0.5}, {"a": 10}, 4)
    with pytest.raises(ConfigError, match=r"must lie in \[0, 1\]"):
        budgets.exact_budgets({"a": 1.5}, {"a": 10}, 15)
    with pytest.raises(ConfigError, match="sizes name"):
        budgets.exact_budgets({"a": 0.5}, {"b": 10}, 5)


@pytest.mark.parametrize("rule", [budgets.erk, budgets.er, budgets.uniform])
@pytest.mark.parametrize("density", [0, -0.1, 1.1, math.nan, math.inf, "0.5", None, True])
def test_density_outside_its_range(rule, density):
    with pytest.raises(ConfigError, match=r"density=.*above 0 and at most 1"):
        rule({"a": (4, 4)}, density)


def test_no_layer():
    with pytest.raises(ConfigError, match="no layer to prune"):
        budgets.erk({}, 0.5)


@pytest.mark.parametrize("sparsity", [1.0, -0.1, 1, 2, math.nan, "0.9", False])
def test_sparsity_outside_its_range(sparsity):
    with pytest.raises(ConfigError, match=r"final=.*from 0"):
        budgets.check_sparsity(sparsity, "final")
    with pytest.raises(ConfigError):
        budgets.budget(sparsity, 10)


def test_budget_rounds_half_to_even():
    assert [budgets.budget(0.5, n) for n in (1, 3, 5, 7)] == [0, 2, 2, 4]
    for sparsity in (0.3, 0.8, 0.9, 0.965):
        exact = (1 - Fraction(str(sparsity))) * 11_159_233
        assert abs(budgets.budget(sparsity, 11_159_233) - exact) <= Fraction(1, 2)
