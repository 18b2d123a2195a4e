# SPDX-License-Identifier: MIT
"""DeepCluster v2 (Caron et al. 2020, appendix A): classify into k-means clusters."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from solo.losses.precision import in_float32


@in_float32
def deepclusterv2_loss_func(
    outputs: Tensor, assignments: Tensor, temperature: float = 0.1
) -> Tensor:
    """Cross entropy of every view against the sample's cluster, averaged over heads.

    Samples with assignment -1 (not clustered yet) do not count; if none counts the loss is zero.

    Args:
        outputs: prototype scores, (heads, views, ..., N, K).
        assignments: cluster of each sample, (heads, N).
        temperature: divides the scores.
    """
    heads, views, classes = outputs.shape[0], outputs.shape[1], outputs.shape[-1]
    loss = outputs.new_zeros(())
    for scores, clusters in zip(outputs, assignments, strict=True):
        targets = clusters.repeat(views).to(outputs.device, non_blocking=True)
        total = F.cross_entropy(
            scores.reshape(-1, classes) / temperature, targets, ignore_index=-1, reduction="sum"
        )
        loss = loss + total / (targets != -1).sum().clamp(min=1)
    return loss / heads
