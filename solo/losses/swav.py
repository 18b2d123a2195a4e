# SPDX-License-Identifier: MIT
"""SwAV (Caron et al. 2020, equation 2): predict the cluster assignment of the other views."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from solo.losses.precision import in_float32


@in_float32
def swav_loss_func(
    preds: Sequence[Tensor], assignments: Sequence[Tensor], temperature: float = 0.1
) -> Tensor:
    """Mean cross entropy over all pairs of an assigned view and another predicted view.

    Args:
        preds: prototype scores of every view, large crops first, each (N, K).
        assignments: soft assignments of the large crops, each (N, K), rows summing to one.
        temperature: divides the scores.
    """
    log_probs = [F.log_softmax(p / temperature, dim=1) for p in preds]
    losses = [
        -(assignment * log_probs[other]).sum(dim=1).mean()
        for view, assignment in enumerate(assignments)
        for other in range(len(preds))
        if other != view
    ]
    return torch.stack(losses).mean()
