# SPDX-License-Identifier: MIT
"""Accuracy and weighted means, on the device (no host synchronisation)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def accuracy_at_k(
    outputs: Tensor,
    targets: Tensor,
    top_k: Sequence[int] = (1, 5),
    ignore_index: int | None = None,
) -> list[Tensor]:
    """Top-k accuracies of logits in percent, one per value of k.

    Args:
        outputs: (N, C) logits.
        targets: (N,) class indexes.
        top_k: the ks; one above C counts as C.
        ignore_index: rows with this target do not count; 0 where none is left.

    Returns:
        a (1,) tensor per k.
    """
    ks = [min(k, outputs.size(1)) for k in top_k]
    ranked = outputs.topk(max(ks), dim=1).indices
    hits = ranked.eq(targets.view(-1, 1))
    counted = torch.ones_like(targets) if ignore_index is None else targets.ne(ignore_index)
    total = counted.sum().clamp(min=1)
    return [hits[:, :k].sum().mul(100.0).div(total).reshape(1) for k in ks]


def weighted_mean(outputs: Sequence[Mapping[str, Any]], key: str, batch_size_key: str) -> Any:
    """Mean of `out[key]` weighted by `out[batch_size_key]`; a (1,) tensor becomes a scalar."""
    total = sum(out[batch_size_key] for out in outputs)
    value = sum(out[batch_size_key] * out[key] for out in outputs) / total
    return value.squeeze(0) if isinstance(value, Tensor) and value.ndim else value
