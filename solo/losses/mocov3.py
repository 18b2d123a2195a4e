# SPDX-License-Identifier: MIT
"""MoCo v3 (Chen et al. 2021, algorithm 1): InfoNCE within the batch of all processes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from solo.losses.precision import in_float32
from solo.utils.ranks import concat_all_gather_no_grad, get_rank


@in_float32
def mocov3_loss_func(query: Tensor, key: Tensor, temperature: float = 0.2) -> Tensor:
    """`2 T` times the cross entropy that picks each query's key.

    The keys get a gradient where they have one and there is a single process: what is gathered
    from others has none. The method passes keys without.

    Args:
        query: predictions of one view, (N, D).
        key: momentum projections of the other view, (N, D).
        temperature: T, divides the cosine similarities.
    """
    query = F.normalize(query, dim=-1)
    keys = concat_all_gather_no_grad(F.normalize(key, dim=-1))
    logits = query @ keys.T / temperature
    labels = torch.arange(len(query), device=query.device) + len(query) * get_rank()
    return F.cross_entropy(logits, labels) * (2 * temperature)
