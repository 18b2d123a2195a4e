# SPDX-License-Identifier: MIT
"""How many weights each layer keeps, as exact integers, and which ones win.

`erk`, `er` and `uniform` turn one density into a budget per layer; `keep_topk` and `global_topk`
turn scores into masks that hold exactly the budget, ties resolved by layer order and lowest flat
index. Units may also be groups of weights (see `sparse_ext.masks.granularity`): pass their number
per layer as `sizes`, and scores per group.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from solo.errors import ConfigError
from sparse_ext.allocation.topk import global_topk, keep_topk

__all__ = [
    "budget",
    "check_density",
    "check_sparsity",
    "er",
    "erk",
    "erk_densities",
    "exact_budgets",
    "fit",
    "global_topk",
    "keep_topk",
    "uniform",
]

Shapes = Mapping[str, "tuple[int, ...]"]


def check_density(density: float, key: str = "density") -> float:
    """`density` as a float if it lies in (0, 1].

    Raises:
        ConfigError: otherwise; `key` is what the message calls it.
    """
    if isinstance(density, bool) or not isinstance(density, (int, float)) or not 0 < density <= 1:
        raise ConfigError(f"{key}={density!r}: a density is a number above 0 and at most 1.")
    return float(density)


def check_sparsity(sparsity: float, key: str = "sparsity") -> float:
    """`sparsity` as a float if it lies in [0, 1).

    Raises:
        ConfigError: otherwise; `key` is what the message calls it.
    """
    number = isinstance(sparsity, (int, float)) and not isinstance(sparsity, bool)
    if not number or not 0 <= sparsity < 1:
        raise ConfigError(
            f"{key}={sparsity!r}: a sparsity is a number from 0 (nothing pruned) to below 1; "
            "for 90% of the weights pruned write 0.9."
        )
    return float(sparsity)


def budget(sparsity: float, n: int) -> int:
    """Kept weights among `n` at `sparsity`: round half to even of (1 - sparsity) * n."""
    return round((1.0 - check_sparsity(sparsity)) * n)


def exact_budgets(
    densities: Mapping[str, float], sizes: Mapping[str, int], total: int
) -> dict[str, int]:
    """Integer budgets that follow `densities` and add up to `total` exactly.

    Every layer gets the floor of density * size; the missing units go one each to the layers with
    the largest fractional part, ties in layer order, never above a layer's size.

    Args:
        densities: wished density per layer, each in [0, 1].
        sizes: weights (or groups) per layer, same names in the same order.
        total: the sum that the budgets must have.

    Raises:
        ConfigError: for densities outside [0, 1], other names, or a total they do not add up to.
    """
    if list(densities) != list(sizes):
        raise ConfigError(f"Densities name {list(densities)}, sizes name {list(sizes)}.")
    wrong = {name: d for name, d in densities.items() if not 0 <= d <= 1}
    if wrong:
        raise ConfigError(f"Layer densities must lie in [0, 1], got {wrong}.")
    wished = {name: densities[name] * sizes[name] for name in sizes}
    kept = {name: math.floor(units) for name, units in wished.items()}
    missing = total - sum(kept.values())
    by_fraction = sorted(sizes, key=lambda name: kept[name] - wished[name])
    open_layers = [name for name in by_fraction if kept[name] < sizes[name]]
    if not 0 <= missing <= len(open_layers):
        raise ConfigError(
            f"The layer densities ask for {sum(wished.values()):.1f} of {sum(sizes.values())} "
            f"units, but the total is {total}: make the two agree."
        )
    for name in open_layers[:missing]:
        kept[name] += 1
    return kept


def fit(
    kept: Mapping[str, int],
    room: Mapping[str, int],
    total: int,
    least: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Budgets that add up, none above what a layer has room for or below its least.

    Args:
        kept: wished budgets.
        room: the most that a layer can keep.
        total: their sum.
        least: what it keeps at least; by default nothing.

    Raises:
        ConfigError: no such budgets have that sum.
    """
    least = least or dict.fromkeys(kept, 0)
    found = {name: max(least[name], min(k, room[name])) for name, k in kept.items()}
    missing = total - sum(found.values())
    rest = {n: room[n] - k if missing > 0 else k - least[n] for n, k in found.items()}
    if abs(missing) > sum(rest.values()):
        raise ConfigError(
            f"{total} units are to be kept, of between {sum(least.values())} and "
            f"{sum(room.values())} that can be: choose another sparsity."
        )
    if missing:
        share = abs(missing) / sum(rest.values())
        more = exact_budgets(dict.fromkeys(rest, share), rest, abs(missing))
        sign = 1 if missing > 0 else -1
        found = {name: found[name] + sign * more[name] for name in found}
    return found


def erk_densities(
    shapes: Shapes,
    density: float,
    sizes: Mapping[str, int] | None = None,
    *,
    dims: int | None = None,
    power: float = 1.0,
) -> dict[str, float]:
    """Real-valued ERK densities, capped at 1 with the excess given to the other layers.

    Layer l asks for eps * (sum of its dims / product of its dims)^power; eps is what makes the
    whole come out at `density` (Evci et al., "Rigging the Lottery", appendix; the cap loop is
    section 1.3 of the algorithms specification).

    Args:
        shapes: weight shape per layer, kernel dims included.
        density: wished share of kept units over all layers, in (0, 1].
        sizes: units per layer; by default the number of weights.
        dims: use only that many leading dims in the raw score (2 for ER).
        power: exponent of the raw score.

    Raises:
        ConfigError: for a density outside (0, 1] or no layers.
    """
    sizes = _sizes(shapes) if sizes is None else sizes
    wanted = check_density(density) * sum(sizes.values())
    raw = {name: (sum(s[:dims]) / math.prod(s[:dims])) ** power for name, s in shapes.items()}
    dense: set[str] = set()
    while len(dense) < len(raw):
        rest = [name for name in raw if name not in dense]
        room = wanted - sum(sizes[name] for name in dense)
        eps = room / math.fsum(raw[name] * sizes[name] for name in rest)
        worst = max(raw[name] for name in rest)
        if eps * worst <= 1:
            return {name: 1.0 if name in dense else eps * raw[name] for name in raw}
        dense.update(name for name in rest if raw[name] == worst)
    return dict.fromkeys(raw, 1.0)


def erk(shapes: Shapes, density: float, sizes: Mapping[str, int] | None = None) -> dict[str, int]:
    """Kept units per layer by the Erdos-Renyi-kernel rule; they add up to round(density * N).

    Args:
        shapes: weight shape per prunable layer, e.g. `{"layer1.0.conv1": (64, 64, 3, 3)}`.
        density: share of kept units over all layers, in (0, 1].
        sizes: units per layer when they are groups; by default the number of weights.

    Raises:
        ConfigError: for a density outside (0, 1] or no layers.
    """
    sizes = _sizes(shapes) if sizes is None else sizes
    total = round(check_density(density) * sum(sizes.values()))
    return exact_budgets(erk_densities(shapes, density, sizes), sizes, total)


def er(shapes: Shapes, density: float, sizes: Mapping[str, int] | None = None) -> dict[str, int]:
    """As `erk`, with the raw score from output and input channels only (Mocanu et al., 2018)."""
    sizes = _sizes(shapes) if sizes is None else sizes
    total = round(check_density(density) * sum(sizes.values()))
    return exact_budgets(erk_densities(shapes, density, sizes, dims=2), sizes, total)


def uniform(
    shapes: Shapes, density: float, sizes: Mapping[str, int] | None = None
) -> dict[str, int]:
    """The same density in every layer; the budgets add up to round(density * N)."""
    sizes = _sizes(shapes) if sizes is None else sizes
    total = round(check_density(density) * sum(sizes.values()))
    return exact_budgets(dict.fromkeys(sizes, float(density)), sizes, total)


def _sizes(shapes: Shapes) -> dict[str, int]:
    if not shapes:
        raise ConfigError("There is no layer to prune: the mapping of shapes is empty.")
    return {name: math.prod(shape) for name, shape in shapes.items()}
