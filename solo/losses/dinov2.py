# SPDX-License-Identifier: MIT
"""DINOv2's regulariser (Oquab et al. 2023, arXiv 2304.07193): KoLeo spreads a batch's features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def koleo_loss_func(x: Tensor, eps: float = 1e-8) -> Tensor:
    """Kozachenko-Leonenko estimate: minus the mean log distance to the nearest neighbour.

    The features are l2-normalised; neighbours are found by cosine similarity among the rows of
    this process. Computed in float32, also under autocast.

    Args:
        x: (N, D) features of one view.
        eps: added to the distances.

    Returns:
        a scalar; 0 for a single row, which has no neighbour.
    """
    if len(x) < 2:
        return x.sum() * 0
    with torch.autocast(x.device.type, enabled=False):
        x = F.normalize(x if x.dtype is torch.double else x.float(), dim=-1)
        with torch.no_grad():
            similarity = x @ x.T
            similarity.fill_diagonal_(-2)
            nearest = similarity.argmax(dim=1)
        return -((x - x[nearest]).norm(dim=1) + eps).log().mean()
