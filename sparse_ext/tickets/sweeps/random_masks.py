# SPDX-License-Identifier: MIT
"""Random masks to compare tickets with, and the sparsity that training leaves by itself."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sparse_ext.pruning.scores.random_draws import draw

MACHINE_ZERO = torch.finfo(torch.float32).eps


def random_global(masks: Mapping[str, Tensor], seed: int, level: int) -> dict[str, Tensor]:
    """As many ones as in `masks`, anywhere: the mask permuted over all layers together."""
    flat = torch.cat([mask.reshape(-1) for mask in masks.values()])
    order = draw(seed, "all layers", "random mask", level, flat.numel())
    kept = torch.zeros_like(flat)
    kept[order[: int(flat.count_nonzero())]] = True
    return _split(kept, masks)


def random_layer(masks: Mapping[str, Tensor], seed: int, level: int) -> dict[str, Tensor]:
    """As many ones as in `masks` in every layer: each layer's mask permuted."""
    permuted = {}
    for name, mask in masks.items():
        order = draw(seed, name, "random mask", level, mask.numel())
        permuted[name] = mask.reshape(-1)[order].view(mask.shape)
    return permuted


def natural(
    masks: Mapping[str, Tensor], weights: Mapping[str, Tensor], seed: int, level: int
) -> dict[str, Tensor]:
    """As many ones as in `masks`; weights at machine zero go first, all others at random.

    With Z the weights of the converged dense network at machine zero: below its share the pruned
    weights are drawn from Z; above it all of Z goes and the rest is drawn from the others.

    Args:
        masks: for their shapes and number of ones.
        weights: of the dense network after training.
        seed: of the draws.
        level: of the draws.
    """
    zero = torch.cat([at_machine_zero(weights[name]).reshape(-1) for name in masks])
    order = draw(seed, "all layers", "natural mask", level, zero.numel())
    order = torch.cat([order[~zero[order]], order[zero[order]]])
    keep = sum(int(mask.count_nonzero()) for mask in masks.values())
    kept = torch.zeros_like(zero)
    kept[order[:keep]] = True
    return _split(kept, masks)


def at_machine_zero(weight: Tensor) -> Tensor:
    """Where |weight| is at most the machine precision of float32 (1.2e-7)."""
    return weight.detach().abs() <= MACHINE_ZERO


def natural_sparsity(weights: Mapping[str, Tensor]) -> dict[str, float]:
    """Share of weights at machine zero per layer, and over `all` of them."""
    zeros = {name: int(at_machine_zero(w).count_nonzero()) for name, w in weights.items()}
    shares = {name: zeros[name] / weights[name].numel() for name in weights}
    return {**shares, "all": sum(zeros.values()) / sum(w.numel() for w in weights.values())}


def _split(flat: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    parts = flat.split([mask.numel() for mask in like.values()])
    return {n: part.view(m.shape).clone() for (n, m), part in zip(like.items(), parts, strict=True)}
