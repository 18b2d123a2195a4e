# SPDX-License-Identifier: MIT
"""Barlow Twins (Zbontar et al. 2021): make the views' cross-correlation the identity (eq. 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from solo.losses.barlow import barlow_loss_func
from solo.methods.base import BaseMethod
from solo.methods.heads import Head, mlp


class BarlowTwins(BaseMethod):
    """One encoder, three-layer projector, no negatives, no predictor."""

    KWARGS = {
        "proj_hidden_dim": int,
        "proj_output_dim": int,
        "lamb": 0.0051,
        "scale_loss": 0.024,
    }
    HEADS = {"projector": Head("z")}

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        kwargs = cfg.method_kwargs
        hidden, out = kwargs.proj_hidden_dim, kwargs.proj_output_dim
        self.lamb: float = kwargs.lamb
        self.scale_loss: float = kwargs.scale_loss
        self.projector = mlp(self.features_dim, hidden, hidden, out)

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """Redundancy reduction between the two views plus the class loss."""
        out = super().training_step(batch, batch_idx)
        z1, z2 = out["z"]
        barlow_loss = barlow_loss_func(z1, z2, lamb=self.lamb, scale_loss=self.scale_loss)
        self._log_train(train_barlow_loss=barlow_loss)
        return barlow_loss + out["loss"]
