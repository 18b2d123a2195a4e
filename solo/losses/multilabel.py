# SPDX-License-Identifier: MIT
"""Binary cross-entropy per class, for images that show several classes at once."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from solo.losses.precision import in_float32


@in_float32
def multilabel_loss_func(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over the classes of the binary cross-entropies, mean over the images; 0-dim.

    The sum is what the learning rate of VOC 2007's fine-tuning belongs to (Caron et al. 2018).

    Args:
        logits: (N, C).
        labels: (N, C), 1 present, 0 absent, -1 left out.
    """
    losses = F.binary_cross_entropy_with_logits(
        logits, labels.clamp(min=0).to(logits), reduction="none"
    )
    return losses.where(labels != -1, 0.0).sum() / len(logits)
