# SPDX-License-Identifier: MIT
"""NNCLR (Dwibedi et al. 2021, equation 2): InfoNCE with nearest neighbours as anchors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from solo.losses.precision import in_float32
from solo.utils.ranks import gather, get_rank


@in_float32
def nnclr_loss_func(nn: Tensor, p: Tensor, temperature: float = 0.1) -> Tensor:
    """Cross entropy that picks each neighbour's own prediction among those of all processes.

    Args:
        nn: nearest neighbours of one view, (N, D).
        p: predictions of the other view, (N, D).
        temperature: divides the cosine similarities.
    """
    nn, p = F.normalize(nn, dim=-1), gather(F.normalize(p, dim=-1))
    labels = torch.arange(len(nn), device=p.device) + len(nn) * get_rank()
    return F.cross_entropy(nn @ p.T / temperature, labels)
