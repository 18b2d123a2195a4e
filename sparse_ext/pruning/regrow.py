# SPDX-License-Identifier: MIT
"""Drop and regrow: swap the least important kept weights for the most wanted pruned ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sparse_ext.allocation.budgets import keep_topk
from sparse_ext.pruning.pruner import Pruner
from sparse_ext.pruning.units import Kept
from sparse_ext.schedules import cosine_fraction


def drop_and_regrow(
    masks: Mapping[str, Tensor],
    magnitude: Mapping[str, Tensor],
    score: Mapping[str, Tensor],
    fraction: float,
    rounding: Callable[[float], int] = math.ceil,
) -> dict[str, Tensor]:
    """New masks with as many kept weights per layer as `masks` (SyncCP Eq. 4, GraNet, RigL).

    Per layer, k = rounding(fraction * kept): the k kept weights of smallest `magnitude` are
    dropped, then the k weights of largest `score` among all that are off are grown, so a dropped
    weight may come straight back.

    Args:
        masks: bool per layer, 1 = kept.
        magnitude: what decides who is dropped, same shapes.
        score: what decides who is grown, same shapes.
        fraction: in [0, 1].
        rounding: to whole weights; RigL rounds down.
    """
    grown = {}
    for name, mask in masks.items():
        kept = int(mask.count_nonzero())
        k = rounding(fraction * kept)
        left = keep_topk(magnitude[name], kept - k, eligible=mask)
        grown[name] = left | keep_topk(score[name], k, eligible=~left)
    return grown


class InstantRegrowth(Pruner):
    """Regrowth by the magnitude of the gradient of the very step (RigL, GraNet).

    Attributes:
        gradient: |dense gradient| of the step under way, where masks are due.
    """

    gradient: Mapping[str, Tensor] = {}

    @classmethod
    def keeps_latents(cls, config: Any, shared: bool) -> bool:
        """N:M groups are ranked by, and choose their members from, what they had before."""
        ranked = cls.stores_zeros and config.some_survive
        return ranked or super().keeps_latents(config, shared)

    def wants_gradients(self) -> bool:
        """At the steps that change masks only."""
        return self.due()

    def observe(self, finite: Tensor) -> None:
        """Keep |gradient| for this step."""
        self.gradient = {
            name: torch.zeros_like(layer.weight)
            if layer.weight.grad is None
            else layer.weight.grad.abs()
            for name, layer in self.online.layers.items()
        }

    def swap(self, kept: Kept, fraction: float, rounding: Callable[[float], int]) -> Kept:
        """Drop that share of each layer's units by magnitude, grow as many by gradient."""
        wanted = self.units.pool(self.gradient)
        self.gradient = {}
        return drop_and_regrow(kept, self.magnitudes(self.online), wanted, fraction, rounding)


def drop_fraction(config: Any, t: int, total: int) -> float:
    """Share of a layer that is swapped at step `t`: cosine over `total` steps."""
    return cosine_fraction(t, max(1, total), config.drop_start, config.drop_end)
