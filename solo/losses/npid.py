# SPDX-License-Identifier: MIT
"""Instance discrimination by noise-contrastive estimation (NPID, Wu et al. 2018)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from solo.losses.precision import in_float32


@in_float32
def npid_loss_func(positive: Tensor, negatives: Tensor, Z: Tensor, n: int) -> Tensor:
    """Equations 5 to 7: each image against K draws from the uniform distribution over all images.

    `-[ln P/(P + K/n) + sum_k ln (K/n)/(P_k + K/n)]` with `P = exp(v.f/T) / Z`, mean of the batch.

    Args:
        positive: v.f/T with the image's own row of the bank, (N,).
        negatives: v.f/T with the rows drawn, (N, K).
        Z: the normalising constant, 0-dim.
        n: rows of the bank.
    """
    noise = negatives.size(1) / n
    own, drawn = positive.exp() / Z, negatives.exp() / Z
    found = torch.log(own / (own + noise))
    refused = torch.log(noise / (drawn + noise)).sum(dim=1)
    return -(found + refused).mean()


@in_float32
def npid_softmax_loss_func(logits: Tensor, indexes: Tensor) -> Tensor:
    """Equation 2: the softmax over all images.

    Args:
        logits: v.f/T with every row of the bank, (N, n).
        indexes: the images' own rows, (N,).
    """
    return F.cross_entropy(logits, indexes)


@torch.no_grad()
def update_bank(bank: Tensor, indexes: Tensor, features: Tensor, momentum: float) -> None:
    """Move the rows `indexes` of `bank` towards `features` and back onto the sphere, in place.

    The features of an index that comes several times are averaged, so that no order matters.

    Args:
        bank: unit rows, (n, D).
        indexes: (N,).
        features: unit rows, (N, D).
        momentum: weight of the old row.
    """
    same = (indexes[:, None] == indexes[None, :]).to(features.dtype)
    features = same @ features / same.sum(dim=1, keepdim=True)
    mixed = momentum * bank[indexes] + (1 - momentum) * features.to(bank.dtype)
    bank.index_copy_(0, indexes, F.normalize(mixed, dim=1))
