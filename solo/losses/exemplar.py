# SPDX-License-Identifier: MIT
"""Exemplar as a triplet loss (Doersch and Zisserman 2017, section 3; after Dosovitskiy 2014)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from solo.losses.precision import in_float32
from solo.utils.ranks import gather, get_rank


@in_float32
def exemplar_loss_func(z1: Tensor, z2: Tensor, margin: float = 0.5) -> Tensor:
    """`max(D(f1, f2) - D(f1, f3) + margin, 0)` with D = 1 - cosine, averaged over all triplets.

    f1 and f2 are two views of an image; f3 runs over the second views of all other images of all
    processes. Both views take their turn as f1.

    Args:
        z1: features of the first views, (N, D).
        z2: features of the second views of the same images, (N, D).
        margin: by which the other images must be farther away.
    """
    z1, z2 = F.normalize(z1, dim=-1), F.normalize(z2, dim=-1)
    return (_one_side(z1, z2, margin) + _one_side(z2, z1, margin)) / 2


def _one_side(anchor: Tensor, other: Tensor, margin: float) -> Tensor:
    similarity = anchor @ gather(other).T
    own = torch.zeros_like(similarity, dtype=torch.bool)
    own[:, len(anchor) * get_rank() :].fill_diagonal_(True)
    positive = (anchor * other).sum(dim=1, keepdim=True)
    violation = F.relu(similarity - positive + margin).masked_fill(own, 0)
    return violation.sum() / (~own).sum().clamp(min=1)
