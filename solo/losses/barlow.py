# SPDX-License-Identifier: MIT
"""Barlow Twins (Zbontar et al. 2021, equation 1): cross-correlation towards the identity."""

from __future__ import annotations

import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from solo.losses.correlation import off_diagonal, off_diagonal_energy
from solo.losses.precision import in_float32


@in_float32
def barlow_loss_func(
    z1: Tensor, z2: Tensor, lamb: float = 5e-3, scale_loss: float = 0.025
) -> Tensor:
    """`scale_loss * (sum_i (C_ii - 1)^2 + lamb * sum_{i != j} C_ij^2)`.

    C is the cross-correlation of the features, standardised over the local batch and averaged
    over processes.

    Args:
        z1: projected features of view 1, (N, D).
        z2: projected features of view 2, (N, D).
        lamb: weight of the off-diagonal term.
        scale_loss: factor of the whole loss.
    """
    z1, z2 = (F.batch_norm(z, None, None, training=True, eps=1e-5) for z in (z1, z2))
    n = len(z1)
    if dist.is_available() and dist.is_initialized():
        correlation = _average(z1.T @ z2 / n)
        diagonal, energy = correlation.diagonal(), off_diagonal(correlation).pow(2).sum()
    else:
        diagonal, energy = (z1 * z2).sum(0) / n, off_diagonal_energy(z1, z2) / n**2
    return scale_loss * ((diagonal - 1).pow(2).sum() + lamb * energy)


def _average(x: Tensor) -> Tensor:
    """Mean over processes; gradients flow into the local share only (DDP averages the rest)."""
    local = x / dist.get_world_size()
    total = local.detach().clone()
    dist.all_reduce(total)
    return local + (total - local.detach())
