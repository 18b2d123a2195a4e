# SPDX-License-Identifier: MIT
"""Figures about masks that a run logs beside its budgets."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def dead_filters(masks: Mapping[str, Tensor]) -> dict[str, float]:
    """Share of output channels without a single kept weight, per layer.

    Such a channel computes a constant: the layer could be built without it.

    Args:
        masks: bool (out, in, ...) by layer.
    """
    dead = torch.stack([(~mask.flatten(1).any(1)).count_nonzero() for mask in masks.values()])
    pairs = zip(masks.items(), dead.tolist(), strict=True)
    return {name: count / mask.shape[0] for (name, mask), count in pairs}


def all_dead_filters(masks: Mapping[str, Tensor], layers: Mapping[str, float]) -> float:
    """Share of all output channels of these layers that are dead, from the shares per layer."""
    channels = {name: mask.shape[0] for name, mask in masks.items()}
    return sum(layers[name] * n for name, n in channels.items()) / sum(channels.values())


def oscillation(masks: Mapping[str, Tensor], layers: Mapping[str, float]) -> float:
    """Share of all weights of these layers, from the shares per layer (SyncCP, Eq. 7)."""
    sizes = {name: masks[name].numel() for name in layers}
    return sum(share * sizes[name] for name, share in layers.items()) / sum(sizes.values())
