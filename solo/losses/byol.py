# SPDX-License-Identifier: MIT
"""BYOL (Grill et al. 2020, equation 2): squared distance of l2-normalised vectors."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from solo.losses.precision import in_float32


@in_float32
def byol_loss_func(p: Tensor, z: Tensor, simplified: bool = True) -> Tensor:
    """`2 - 2 * mean cos(p, z)`, without gradient into `z`.

    Args:
        p: predictions of the online network, (N, D).
        z: projections of the momentum network, (N, D).
        simplified: use the cosine similarity; otherwise normalise and multiply (same value).
    """
    if simplified:
        return 2 - 2 * F.cosine_similarity(p, z.detach(), dim=-1).mean()
    p, z = F.normalize(p, dim=-1), F.normalize(z, dim=-1)
    return 2 - 2 * (p * z.detach()).sum(dim=-1).mean()
