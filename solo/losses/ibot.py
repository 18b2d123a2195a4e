# SPDX-License-Identifier: MIT
"""iBOT (Zhou et al. 2021, arXiv 2111.07832): a student predicts its teacher's tokens of patches."""

from __future__ import annotations

import torch
from torch import Tensor


def ibot_patch_loss_func(student: Tensor, teacher: Tensor, owner: Tensor, images: int) -> Tensor:
    """Cross entropy at the hidden patches: mean over each image's, then over all images.

    An image without hidden patches counts as 0.

    Args:
        student: log probabilities (M, K) of the hidden patches of all images.
        teacher: probabilities (M, K) of the same patches.
        owner: (M,) number of the image that each patch is of.
        images: number of images, with and without hidden patches.

    Returns:
        a scalar.
    """
    entropy = -(teacher * student).sum(dim=-1)
    hidden = torch.bincount(owner, minlength=images).clamp(min=1)
    return (entropy / hidden[owner]).sum() / images
