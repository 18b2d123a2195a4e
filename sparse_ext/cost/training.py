# SPDX-License-Identifier: MIT
"""Cost of training a sparse encoder, as a fraction of training it dense (section 14).

Per image and view a dense network pays its forward pass F three times: forward, gradient of the
activations, gradient of the weights; a momentum encoder pays its forward pass once. Papers count a
sparse network in three ways, and even within one paper not the same for every row, so all three
are reported. Everything here is modelled from densities, nothing is measured in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from solo.errors import ConfigError

if TYPE_CHECKING:
    from sparse_ext.cost.layers import CostTable

CONVENTIONS = {
    "A": "3 f_online + f_momentum over 4: every pass of the online encoder is sparse (RigL)",
    "B": "2 f_online + 1 + f_momentum over 4: the gradient of the weights stays dense",
    "C": "f_online + f_momentum over 2: forward passes only",
}
SHARED_CONVENTIONS = {
    "A": "f_online: one encoder, every pass sparse",
    "B": "2 f_online + 1 over 3: the gradient of the weights stays dense",
    "C": "f_online: forward passes only",
}


def training_ratios(f_online: float, f_momentum: float | None = None) -> dict[str, float]:
    """Training cost over dense training cost, by convention.

    Args:
        f_online: MACs of the online encoder's forward pass over the dense ones.
        f_momentum: the same for the momentum encoder; None for a method without one.
    """
    if f_momentum is None:
        return {"A": f_online, "B": (2 * f_online + 1) / 3, "C": f_online}
    return {
        "A": (3 * f_online + f_momentum) / 4,
        "B": (2 * f_online + 1 + f_momentum) / 4,
        "C": (f_online + f_momentum) / 2,
    }


def average(steps: Sequence[float], values: Sequence[float]) -> float:
    """Mean of a logged quantity over the run, straight lines between the logged points.

    The conventions are linear in the densities, so the ratio of a run is the ratio of averages.

    Args:
        steps: rising optimizer steps (or epochs), from the start of the run to its end.
        values: the quantity there.

    Raises:
        ConfigError: if the two differ in length, are empty, or steps do not rise.
    """
    if len(steps) != len(values) or not steps:
        raise ConfigError(f"{len(values)} values logged at {len(steps)} steps have no average.")
    if any(later <= earlier for earlier, later in pairwise(steps)):
        raise ConfigError("The steps of a log must rise.")
    if len(steps) == 1:
        return float(values[0])
    points = list(zip(steps, values, strict=True))
    area = sum((t1 - t0) * (v0 + v1) / 2 for (t0, v0), (t1, v1) in pairwise(points))
    return area / (steps[-1] - steps[0])


def interpolate(curve: Mapping[float, float], density: float) -> float:
    """MAC ratio at a density, on straight lines between known points and (0, 0), (1, 1)."""
    points = sorted({0.0: 0.0, 1.0: 1.0, **curve}.items())
    for (d0, f0), (d1, f1) in pairwise(points):
        if d0 <= density <= d1:
            return f0 + (f1 - f0) * (density - d0) / (d1 - d0)
    raise ConfigError(f"density {density} is outside of [0, 1].")


def run_ratios(
    table: CostTable,
    epochs: Sequence[float],
    layer_densities: Sequence[Mapping[str, float]],
    momentum_densities: Sequence[float] | None = None,
) -> dict[str, float]:
    """Training cost of a whole run over that of a dense one, by convention.

    Args:
        table: the encoder's cost.
        epochs: epochs finished at each logged point; before the first its values are taken.
        layer_densities: density of every prunable layer of the online encoder at these points.
        momentum_densities: of the momentum encoder's prunable set; None without one. Its MACs are
            read off the online encoder's curve at equal density, as its layers are not logged.
    """
    own = [table.ratio_at(dict(densities)) for densities in layer_densities]
    sizes = {layer.name: layer.weights for layer in table.layers}
    total = [_mean_density(densities, sizes) for densities in layer_densities]
    dense = table.ratio_at(dict.fromkeys(layer_densities[0], 1.0))
    curve = {**dict(zip(total, own, strict=True)), 1.0: dense}
    points = [0.0, *epochs]
    online = average(points, [own[0], *own])
    if momentum_densities is None:
        return training_ratios(online)
    other = [interpolate(curve, density) for density in momentum_densities]
    return training_ratios(online, average(points, [other[0], *other]))


def _mean_density(densities: Mapping[str, float], sizes: Mapping[str, int]) -> float:
    n = sum(sizes[name] for name in densities)
    return min(1.0, sum(density * sizes[name] for name, density in densities.items()) / n)
