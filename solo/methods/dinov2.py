# SPDX-License-Identifier: MIT
"""DINOv2 (Oquab et al. 2023, arXiv 2304.07193): iBOT, balanced targets, features spread apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from solo.losses.dinov2 import koleo_loss_func
from solo.methods.ibot import IBOT


class DINOv2(IBOT):
    """iBOT with Sinkhorn-Knopp in the place of the running centres, KoLeo, and a head for patches.

    LayerScale, stochastic depth and the layers' learning rates stand in the recipe:
    `backbone.kwargs.{init_values,drop_path_rate}`, `optimizer.{layer_decay,patch_embed_lr}`.
    """

    KWARGS: Mapping[str, Any] = {
        **IBOT.KWARGS,
        "num_prototypes": 65536,
        "shared_head": False,
        "koleo_weight": 0.1,
    }
    SINKHORN_ITERS = 3

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        self.koleo_weight: float = cfg.method_kwargs.koleo_weight

    def terms(self, out: Mapping[str, Any]) -> dict[str, Tensor]:
        """iBOT's terms, and KoLeo on the student's features of each large crop, summed."""
        large = out["feats"][: self.num_large_crops]
        koleo = torch.stack([koleo_loss_func(feats) for feats in large]).sum()
        return {**super().terms(out), "train_koleo_loss": self.koleo_weight * koleo}
