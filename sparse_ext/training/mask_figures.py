# SPDX-License-Identifier: MIT
"""Figures about masks that a run logs beside its budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sparse_ext.pruning.pruner import Pruner

SWAPPED = "layer_oscillation/"


def epoch_figures(
    pruner: Pruner, sparsities: Sequence[float], figures: Mapping[str, float]
) -> dict[str, float]:
    """What a run logs of its masks at the end of an epoch. Starts `mask_flips` anew.

    Args:
        pruner: the method at work.
        sparsities: of each encoder's weights, the online one first.
        figures: the method's own, from `close_epoch`.
    """
    found = {**figures, "online_sparsity": sparsities[0]}
    if len(sparsities) > 1:
        found |= {"momentum_sparsity": sparsities[1], "gap": sparsities[0] - sparsities[1]}
    if not pruner.units.single:
        groups = map(pruner.sparsity_of, pruner.encoders)
        named = ("online_group_sparsity", "momentum_group_sparsity")
        found |= dict(zip(named, groups, strict=False))
    total = sum(encoder.masks.n for encoder in pruner.encoders)
    found["mask_flips"], pruner.flips = pruner.flips / total, 0
    masks = pruner.online.masks
    dead = dead_filters(masks)
    found["dead_filters"] = all_dead_filters(masks, dead)
    found |= {f"layer_dead_filters/{name}": share for name, share in dead.items()}
    found |= {f"layer_density/{name}": density for name, density in masks.layer_density().items()}
    swaps = {k.removeprefix(SWAPPED): v for k, v in figures.items() if k.startswith(SWAPPED)}
    if swaps:
        found["oscillation"] = oscillation(masks, swaps)
    return found


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
