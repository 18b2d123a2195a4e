# SPDX-License-Identifier: MIT
"""MoCo v2 (Chen et al. 2020; MoCo equation 1): InfoNCE against a queue."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from solo.losses.precision import in_float32


@in_float32
def mocov2plus_loss_func(
    query: Tensor, key: Tensor, queue: Tensor, temperature: float = 0.1
) -> Tensor:
    """Cross entropy that picks the sample's own key among it and the queue.

    Args:
        query: l2-normalised online features, (N, D).
        key: l2-normalised momentum features of the other view, (N, D).
        queue: l2-normalised negatives as columns, (D, K).
        temperature: divides the similarities.
    """
    own = (query * key).sum(dim=1, keepdim=True)
    logits = torch.cat([own, query @ queue], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long, device=query.device))
