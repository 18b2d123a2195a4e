# SPDX-License-Identifier: MIT
"""Units that differ in size from layer to layer: what is compared, and what stays in any case."""

import re

import pytest
import torch

from solo.errors import ConfigError
from sparse_ext.config.base import ALLOCATIONS
from sparse_ext.pruning.units import Units

pytestmark = pytest.mark.unit

SHAPES = {"narrow": (4, 2, 3, 3), "pointwise": (4, 8, 1, 1), "wide": (8, 16, 3, 3)}


def weights(scale=None):
    """Weights of one distribution in all layers, or of one scale per layer."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: (0.5 + torch.rand(shape, generator=generator)) * (scale or {}).get(name, 1.0)
        for name, shape in SHAPES.items()
    }


@pytest.mark.parametrize("granularity", ["filter", "block2-merged"])
def test_units_of_several_sizes_are_compared_by_their_means(granularity):
    units, values = Units(granularity, SHAPES), weights()
    pooled = units.pool(values)
    for name, value in values.items():
        assert pooled[name].mean().item() == pytest.approx(value.mean().item())
    total = units.pool(values, total=True)
    assert sum(v.sum() for v in total.values()) == pytest.approx(
        sum(v.sum().item() for v in values.values()), rel=1e-5
    )
    kept = units.largest(pooled, 0.5)
    assert all(0 < int(part.sum()) < part.numel() for part in kept.values())  # by sums only "wide"


def test_filters_of_layers_with_small_weights_compete():
    units = Units("filter", SHAPES)
    values = units.pool(weights({"narrow": 1e-3, "wide": 1e3}))
    kept = units.largest(values, 0.5)
    relative = {name: value / value.mean() for name, value in values.items()}
    bound = torch.cat(list(relative.values())).sort(descending=True).values[units.budget(0.5) - 1]
    assert all(torch.equal(part, relative[name] >= bound) for name, part in kept.items())


def test_filters_of_scores_with_signs_compete_too():
    units = Units("filter", SHAPES)
    values = {name: value - 1.0 for name, value in units.pool(weights()).items()}
    kept = units.largest(values, 0.5)
    worth = {name: value - value.min() for name, value in values.items()}
    assert all(value.min() < 0 for value in values.values())
    relative = {name: value / value.mean() for name, value in worth.items()}
    bound = torch.cat(list(relative.values())).sort(descending=True).values[units.budget(0.5) - 1]
    assert all(torch.equal(part, relative[name] >= bound) for name, part in kept.items())


def test_units_of_one_size_are_summed():
    values = weights()
    pooled = Units("block2", SHAPES).pool(values)
    assert sum(v.sum() for v in pooled.values()) == pytest.approx(
        sum(v.sum().item() for v in values.values()), rel=1e-5
    )


@pytest.mark.parametrize("rule", ["global", *ALLOCATIONS])
def test_the_best_filter_of_each_layer_stays(rule):
    units = Units("filter", SHAPES)
    values = units.pool(weights({"narrow": 1e-3, "pointwise": 1e-6}))
    kept = (
        units.largest(values, 0.8)
        if rule == "global"
        else units.largest_per_layer(values, 0.8, rule)
    )
    assert sum(int(part.sum()) for part in kept.values()) == units.budget(0.8) == 3
    for name, part in kept.items():
        assert part[values[name].argmax()]


def test_eligible_filters_only():
    units = Units("filter", SHAPES)
    values = units.pool(weights({"narrow": 1e-3}))
    eligible = {name: torch.ones(n, dtype=torch.bool) for name, n in units.sizes.items()}
    eligible["narrow"][values["narrow"].argmax()] = False
    kept = units.largest(values, 0.8, eligible)
    assert all(int(part.sum()) == 1 for part in kept.values())
    assert not (kept["narrow"] & ~eligible["narrow"]).any()


def test_a_sparsity_that_leaves_a_layer_without_filters_is_refused():
    message = "A sparsity of 0.9 leaves 2 of 16 filters, but each of the 3 layers keeps at least"
    with pytest.raises(ConfigError, match=re.escape(message)):
        Units("filter", SHAPES).budget(0.9)
