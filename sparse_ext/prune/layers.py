# SPDX-License-Identifier: MIT
"""One layer pruned: new weights, its mask, and how far its output is from the dense one's."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparse_ext.masks.granularity import Element, Filter, Granularity
from sparse_ext.prune import sparsegpt
from sparse_ext.prune.budgets import keep_by_row, keep_units
from sparse_ext.prune.layer_inputs import Moments, matrix, weight_of
from sparse_ext.prune.scores import wanda


class Pruned(NamedTuple):
    """A pruned layer: weights, mask and error.

    Attributes:
        weight: of the layer's shape, exactly zero where pruned.
        mask: bool, 1 = kept.
        error: mean squared error of the output over its mean square, on the calibration images;
            NaN where the method does not look at inputs.
    """

    weight: Tensor
    mask: Tensor
    error: float


def by_score(layer: Any, granularity: Granularity, score: Tensor, kept: int) -> Pruned:
    """Keep the units of highest score; the weights that stay are as they were."""
    mask = keep_units(granularity, score, kept)
    return Pruned(layer.weight.detach() * mask, mask, float("nan"))


def by_wanda(layer: Any, granularity: Granularity, seen: Moments, kept: int) -> Pruned:
    """Wanda: single weights compete within their row, larger units within their layer."""
    shape, groups = layer.weight.shape, getattr(layer, "groups", 1)
    rows = matrix(layer.weight.detach(), groups)
    score = weight_of(wanda(rows, seen.second), shape)
    if isinstance(granularity, Element):
        mask = weight_of(keep_by_row(matrix(score), kept)[0], shape)
    else:
        mask = keep_units(granularity, score, kept)
    new = layer.weight.detach() * mask
    return Pruned(new, mask, sparsegpt.relative_error(rows, matrix(new, groups), seen.second))


def by_sparsegpt(layer: Any, granularity: Granularity, seen: Moments, kept: int) -> Pruned:
    """SparseGPT, or magnitude's mask with corrected weights where that has the smaller error."""
    shape, groups = layer.weight.shape, getattr(layer, "groups", 1)
    rows = matrix(layer.weight.detach().float(), groups)
    by_size = matrix(keep_units(granularity, layer.weight.detach().float().abs(), kept), groups)
    best: list[tuple[Tensor, Tensor]] = []
    shares = _shares(granularity, rows, seen.second, kept)
    for g in range(groups):
        second = seen.second[g]
        candidates = [(rows[g] * by_size[g], by_size[g])]
        if isinstance(granularity, Filter):
            candidates = [_whole_rows(rows[g], second, shares[g])]
        else:
            candidates.append(
                sparsegpt.prune(rows[g], second, _chooser(granularity, rows[g], shares[g]))
            )
            refined = [(sparsegpt.refine(rows[g], new, m, second), m) for new, m in candidates]
            candidates += refined
        errors = [sparsegpt.relative_error(rows[g], new, second) for new, _ in candidates]
        best.append(candidates[min(range(len(errors)), key=errors.__getitem__)])
    new = torch.stack([weight for weight, _ in best])
    mask = torch.stack([kept for _, kept in best])
    error = sparsegpt.relative_error(rows, new, seen.second)
    weight = weight_of(new, shape).to(layer.weight.dtype)
    return Pruned(weight, weight_of(mask, shape), error)


def _shares(granularity: Granularity, rows: Tensor, second: Tensor, kept: int) -> list[int]:
    """Units that each channel group keeps: as magnitude would, so that they add up."""
    if len(rows) == 1:
        return [kept]
    flat = rows.abs().reshape(-1, rows.shape[-1])
    chosen = granularity.groups_kept(keep_units(granularity, flat, kept)).reshape(len(rows), -1)
    return [int(part.count_nonzero()) for part in chosen]


def _chooser(granularity: Granularity, rows: Tensor, kept: int) -> sparsegpt.Choose:
    """Deals the budget of a matrix out to blocks of columns, evenly and exactly."""
    units = granularity.n_groups(tuple(rows.shape))
    per_column = units / rows.shape[1]

    def choose(score: Tensor, start: int) -> Tensor:
        before = round(kept * round(per_column * start) / units)
        after = round(kept * round(per_column * (start + score.shape[1])) / units)
        return keep_units(granularity, score, after - before)

    return choose


def _whole_rows(rows: Tensor, second: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """Filters whose output is largest stay; nothing can take over the output of another."""
    energy = (rows @ second * rows).sum(1)
    mask = torch.zeros_like(rows, dtype=torch.bool)
    mask[energy.argsort(descending=True, stable=True)[:kept]] = True
    return rows * mask, mask
