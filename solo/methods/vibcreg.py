# SPDX-License-Identifier: MIT
"""VIbCReg (Lee & Aune 2021): VICReg with a normalised covariance and a whitening projector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig
from torch import Tensor, nn

from solo.losses.vibcreg import vibcreg_loss_func
from solo.methods.base import BaseMethod
from solo.methods.heads import mlp
from solo.utils.whitening import IterNorm


class VIbCReg(BaseMethod):
    """`iternorm` ends the projector with iterative normalisation."""

    KWARGS = {
        "proj_hidden_dim": int,
        "proj_output_dim": int,
        "sim_loss_weight": 25.0,
        "var_loss_weight": 25.0,
        "cov_loss_weight": 200.0,
        "iternorm": False,
    }
    HEADS = {"projector": {}}

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        kwargs = cfg.method_kwargs
        hidden, out = kwargs.proj_hidden_dim, kwargs.proj_output_dim
        self.sim_loss_weight: float = kwargs.sim_loss_weight
        self.var_loss_weight: float = kwargs.var_loss_weight
        self.cov_loss_weight: float = kwargs.cov_loss_weight
        self.projector = mlp(self.features_dim, hidden, hidden, out, activation=nn.GELU)
        self.projector.append(IterNorm(out, num_groups=64) if kwargs.iternorm else nn.Identity())

    def forward(self, X: Tensor) -> dict[str, Tensor]:
        """Adds `z` (N, proj_output_dim)."""
        out = super().forward(X)
        return {**out, "z": self.projector(out["feats"])}

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """Invariance, variance and normalised covariance of the two views."""
        out = super().training_step(batch, batch_idx)
        z1, z2 = out["z"]
        vibcreg_loss = vibcreg_loss_func(
            z1,
            z2,
            sim_loss_weight=self.sim_loss_weight,
            var_loss_weight=self.var_loss_weight,
            cov_loss_weight=self.cov_loss_weight,
        )
        self._log_train(train_vibcreg_loss=vibcreg_loss)
        return vibcreg_loss + out["loss"]
