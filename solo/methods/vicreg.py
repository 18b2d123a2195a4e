# SPDX-License-Identifier: MIT
"""VICReg (Bardes, Ponce & LeCun 2022): invariance, variance and covariance terms (eq. 6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from solo.losses.vicreg import vicreg_loss_func
from solo.methods.base import BaseMethod
from solo.methods.heads import Head, mlp


class VICReg(BaseMethod):
    """One encoder, three-layer projector; no negatives, predictor or normalisation."""

    KWARGS = {
        "proj_hidden_dim": int,
        "proj_output_dim": int,
        "sim_loss_weight": 25.0,
        "var_loss_weight": 25.0,
        "cov_loss_weight": 1.0,
    }
    HEADS = {"projector": Head("z")}
    LOSS = staticmethod(vicreg_loss_func)
    METRIC = "train_vicreg_loss"

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        kwargs = cfg.method_kwargs
        hidden, out = kwargs.proj_hidden_dim, kwargs.proj_output_dim
        self.sim_loss_weight: float = kwargs.sim_loss_weight
        self.var_loss_weight: float = kwargs.var_loss_weight
        self.cov_loss_weight: float = kwargs.cov_loss_weight
        self.projector = mlp(self.features_dim, hidden, hidden, out)

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """The three weighted terms plus the class loss."""
        out = super().training_step(batch, batch_idx)
        z1, z2 = out["z"]
        loss = self.LOSS(
            z1,
            z2,
            sim_loss_weight=self.sim_loss_weight,
            var_loss_weight=self.var_loss_weight,
            cov_loss_weight=self.cov_loss_weight,
        )
        self._log_train(**{self.METRIC: loss})
        return loss + out["loss"]
