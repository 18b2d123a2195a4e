# SPDX-License-Identifier: MIT
"""SimSiam (Chen & He 2020, equation 1): negative cosine similarity with a stop-gradient."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from solo.losses.precision import in_float32


@in_float32
def simsiam_loss_func(p: Tensor, z: Tensor, simplified: bool = True) -> Tensor:
    """`-mean cos(p, z)`, without gradient into `z`.

    Args:
        p: predictions of one view, (N, D).
        z: projections of the other view, (N, D).
        simplified: use the cosine similarity; otherwise normalise and multiply (same value).
    """
    z = z.detach()
    if simplified:
        return -F.cosine_similarity(p, z, dim=-1).mean()
    return -(F.normalize(p, dim=-1) * F.normalize(z, dim=-1)).sum(dim=-1).mean()
