# SPDX-License-Identifier: MIT
"""VICReg (Bardes et al. 2021, equations 1-6): invariance, variance, covariance."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from solo.losses.correlation import off_diagonal_energy
from solo.losses.precision import in_float32
from solo.utils.ranks import gather


def invariance_loss(z1: Tensor, z2: Tensor) -> Tensor:
    """Mean squared error of two views, each (N, D) (equation 5)."""
    return F.mse_loss(z1, z2)


def variance_loss(z1: Tensor, z2: Tensor) -> Tensor:
    """Hinge on the standard deviation of each feature (equation 1), summed over the views.

    Args:
        z1: features of view 1, (N, D).
        z2: features of view 2, (N, D).
    """
    hinges = [F.relu(1 - (z.var(dim=0) + 1e-4).sqrt()).mean() for z in (z1, z2)]
    return torch.stack(hinges).sum()


def covariance_loss(z1: Tensor, z2: Tensor) -> Tensor:
    """Squared off-diagonal covariances divided by D (equation 4), summed over the views.

    Args:
        z1: features of view 1, (N, D).
        z2: features of view 2, (N, D).
    """
    n, dim = z1.shape
    centred = [z - z.mean(dim=0) for z in (z1, z2)]
    energies = [off_diagonal_energy(z, z) / ((n - 1) ** 2 * dim) for z in centred]
    return torch.stack(energies).sum()


@in_float32
def vicreg_loss_func(
    z1: Tensor,
    z2: Tensor,
    sim_loss_weight: float = 25.0,
    var_loss_weight: float = 25.0,
    cov_loss_weight: float = 1.0,
) -> Tensor:
    """Weighted sum of the three terms; variance and covariance over the batch of all processes.

    The variance term is summed over the two views, as solo-learn does. The authors' repository
    takes half of that sum: a weight of 25 there equals `var_loss_weight=12.5` here.

    Args:
        z1: projected features of view 1, (N, D).
        z2: projected features of view 2, (N, D).
        sim_loss_weight: weight of the invariance.
        var_loss_weight: weight of the variance.
        cov_loss_weight: weight of the covariance.
    """
    invariance = invariance_loss(z1, z2)
    z1, z2 = gather(z1), gather(z2)
    return (
        sim_loss_weight * invariance
        + var_loss_weight * variance_loss(z1, z2)
        + cov_loss_weight * covariance_loss(z1, z2)
    )
