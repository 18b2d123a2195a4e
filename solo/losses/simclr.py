# SPDX-License-Identifier: MIT
"""NT-Xent of SimCLR (Chen et al. 2020, equation 1), for any number of positives per sample."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from solo.losses.precision import in_float32
from solo.utils.ranks import gather, get_rank


@in_float32
def simclr_loss_func(z: Tensor, indexes: Tensor, temperature: float = 0.1) -> Tensor:
    """`-mean_i log(sum_{positives} exp(s_ij / T) / sum_{j != i} exp(s_ij / T))`.

    s is the cosine similarity to the features of all processes. Samples with the same index are
    positives; with class labels as indexes this sums the positives inside the logarithm, unlike
    equation 2 of the SupCon paper. A sample without a positive makes the loss infinite.

    Args:
        z: projected features of all views, (N, D).
        indexes: identity of the sample (or its label) behind each row, (N,).
        temperature: T.
    """
    z = F.normalize(z, dim=-1)
    logits = z @ gather(z).T / temperature
    own = torch.zeros_like(logits, dtype=torch.bool)
    own[:, len(z) * get_rank() :].fill_diagonal_(True)
    positive = (indexes[:, None] == gather(indexes)[None, :]) & ~own
    all_others = logits.masked_fill(own, -torch.inf).logsumexp(dim=1)
    positives = logits.masked_fill(~positive, -torch.inf).logsumexp(dim=1)
    return (all_others - positives).mean()
