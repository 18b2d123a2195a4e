# SPDX-License-Identifier: MIT
"""How many units each layer keeps, and which: from scores of weights to masks.

Sparsity is the share of zero weights over the prunable layers. A unit is what the granularity
prunes as one: a weight, an N:M group, a block, a filter; what it costs is the sum of the scores of
the weights that it loses.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from solo.errors import ConfigError, did_you_mean
from sparse_ext.allocation import keep_topk
from sparse_ext.config.base import ALLOCATIONS
from sparse_ext.masks.granularity import NM, Granularity
from sparse_ext.prune.scores import lamp
from sparse_ext.pruning.units import Units


def rules() -> tuple[str, ...]:
    """How layers may get their budgets: by ranking the scores of all layers together (`global`),
    by ranking those of LAMP whatever decides within a layer (`lamp`), or by a density rule."""
    return ("global", "lamp", *ALLOCATIONS)


def unit_share(granularity: Granularity, sparsity: float) -> float:
    """Share of the units that must go for a share `sparsity` of zero weights.

    >>> unit_share(NM(2, 4), 0.5)
    1.0

    Raises:
        ConfigError: sparsity is not inside (0, 1), or more than the granularity can reach.
    """
    if not 0 < sparsity < 1:
        raise ConfigError(
            f"--sparsity {sparsity} must lie between 0 and 1, both excluded: for 80% of the "
            f"weights pruned write 0.8."
        )
    most = 1 - granularity.keeps / granularity.m if isinstance(granularity, NM) else 1.0
    if sparsity > most + 1e-9:
        raise ConfigError(
            f"--sparsity {sparsity} cannot be reached with --granularity {granularity}, whose "
            f"groups all keep {granularity.keeps} of {granularity.m}: at most {most:g}."  # type: ignore[attr-defined]
        )
    return min(1.0, sparsity / most)


def costs(granularity: Granularity, score: Tensor) -> tuple[Tensor, Tensor]:
    """What each unit costs, and who survives in a pruned one.

    Args:
        granularity: what a unit is.
        score: per weight, not negative.

    Returns:
        (cost per unit as `granularity.pool` orders them, mask of the weights that stay when all
        units are pruned).
    """
    units = granularity.groups_kept(torch.ones_like(score, dtype=torch.bool))
    survivors = granularity.expand(torch.zeros_like(units), score)
    return granularity.pool(score.masked_fill(survivors, 0)), survivors


def keep_units(granularity: Granularity, score: Tensor, kept: int) -> Tensor:
    """The mask of one layer that keeps the `kept` units of highest cost.

    Args:
        granularity: what a unit is.
        score: per weight, not negative.
        kept: whole units to keep.
    """
    cost, _ = costs(granularity, score)
    return granularity.expand(keep_topk(cost, kept), score)


def keep_by_row(score: Tensor, kept: int) -> Tensor:
    """The mask of one layer that keeps equally many weights in every row, the largest (Wanda).

    Args:
        score: (..., d), not negative; everything but the last dimension counts rows.
        kept: weights to keep in all; where rows do not share it evenly, one more stays in those
            rows whose next score is largest.
    """
    rows = score.reshape(-1, score.shape[-1])
    each, more = divmod(kept, len(rows))
    order = rows.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(rows.shape[1], device=rows.device).expand_as(order)
    )
    mask = rank < each
    if more:
        following = rows.gather(1, order[:, each : each + 1]).squeeze(1)
        chosen = following.argsort(descending=True, stable=True)[:more]
        mask[chosen] |= rank[chosen] == each
    return mask.reshape(score.shape)


def layer_budgets(
    units: Units, weights: Mapping[str, Tensor], share: float, rule: str, scores: Mapping | None
) -> dict[str, int]:
    """Units that each layer keeps; together exactly the budget.

    Args:
        units: of the prunable layers.
        weights: by layer.
        share: of the units that go.
        rule: one of `rules()`.
        scores: per weight and layer, comparable between layers; needed for `global` alone.

    Raises:
        ConfigError: an unknown rule, or `global` for scores of single layers.
    """
    if rule not in rules():
        raise ConfigError(f"--allocation {rule} is unknown. {did_you_mean(rule, rules())}")
    if share >= 1:
        return dict.fromkeys(units.sizes, 0)
    if rule in ALLOCATIONS:
        return units.allocate(rule, share)
    if rule == "lamp":
        scores = {name: lamp(weight) for name, weight in weights.items()}
    if scores is None:
        raise ConfigError(
            "--allocation global ranks the weights of all layers together; this method compares "
            "weights of one layer only: choose lamp, erk, er or uniform."
        )
    cost = {name: costs(units.granularity, score)[0] for name, score in scores.items()}
    kept = units.largest(cost, share)
    return {name: int(mask.count_nonzero()) for name, mask in kept.items()}
