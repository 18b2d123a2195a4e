# SPDX-License-Identifier: MIT
"""Drop and regrow: swap the least important kept weights for the most wanted pruned ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch import Tensor

from sparse_ext.allocation.budgets import keep_topk


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
