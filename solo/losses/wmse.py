# SPDX-License-Identifier: MIT
"""W-MSE (Ermolov et al. 2020): squared distance of whitened, l2-normalised vectors."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from solo.losses.precision import in_float32


@in_float32
def wmse_loss_func(z1: Tensor, z2: Tensor, simplified: bool = True) -> Tensor:
    """`2 - 2 * mean cos(z1, z2)`.

    Args:
        z1: whitened features of one view, (N, D).
        z2: whitened features of another view, (N, D).
        simplified: use the cosine similarity and stop the gradient into `z2`; otherwise
            gradients flow into both.
    """
    if simplified:
        return 2 - 2 * F.cosine_similarity(z1, z2.detach(), dim=-1).mean()
    return 2 - 2 * (F.normalize(z1, dim=-1) * F.normalize(z2, dim=-1)).sum(dim=-1).mean()
