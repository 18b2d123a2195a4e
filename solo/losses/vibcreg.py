# SPDX-License-Identifier: MIT
"""VIbCReg (Lee & Aune 2021): VICReg with a normalised covariance."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from solo.losses.correlation import off_diagonal_energy
from solo.losses.precision import in_float32
from solo.losses.vicreg import invariance_loss, variance_loss
from solo.utils.ranks import gather


def covariance_loss(z1: Tensor, z2: Tensor) -> Tensor:
    """Mean squared correlation between different features, summed over the views.

    The mean runs over all D^2 pairs; the diagonal counts as zero.

    Args:
        z1: features of view 1, (N, D).
        z2: features of view 2, (N, D).
    """
    unit = [F.normalize(z - z.mean(dim=0), dim=0) for z in (z1, z2)]
    return torch.stack([off_diagonal_energy(z, z) / z.shape[1] ** 2 for z in unit]).sum()


@in_float32
def vibcreg_loss_func(
    z1: Tensor,
    z2: Tensor,
    sim_loss_weight: float = 25.0,
    var_loss_weight: float = 25.0,
    cov_loss_weight: float = 200.0,
) -> Tensor:
    """Weighted sum of the three terms; variance and covariance over the batch of all processes.

    Args:
        z1: projected features of view 1, (N, D).
        z2: projected features of view 2, (N, D).
        sim_loss_weight: weight of the invariance.
        var_loss_weight: weight of the variance.
        cov_loss_weight: weight of the normalised covariance.
    """
    invariance = invariance_loss(z1, z2)
    z1, z2 = gather(z1), gather(z2)
    return (
        sim_loss_weight * invariance
        + var_loss_weight * variance_loss(z1, z2)
        + cov_loss_weight * covariance_loss(z1, z2)
    )
