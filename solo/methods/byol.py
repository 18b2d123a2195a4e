# SPDX-License-Identifier: MIT
"""BYOL (Grill et al. 2020): predict the momentum network's projection of another view (eq. 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from solo.losses.byol import byol_loss_func
from solo.methods.base import BaseMomentumMethod
from solo.methods.heads import Head, mlp, momentum_pair, spread


class BYOL(BaseMomentumMethod):
    """Targets come from the large crops, predictions from every crop."""

    KWARGS = {"proj_hidden_dim": int, "proj_output_dim": int, "pred_hidden_dim": int}
    HEADS = {"projector": Head("z"), "predictor": Head("p", of="z")}
    HEADS_ON_SMALL_CROPS = True

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        kwargs = cfg.method_kwargs
        hidden, out = kwargs.proj_hidden_dim, kwargs.proj_output_dim
        self.projector, self.momentum_projector = momentum_pair(
            lambda: mlp(self.features_dim, hidden, out)
        )
        self.predictor = mlp(out, kwargs.pred_hidden_dim, out)

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """Sum of the losses over all pairs (target view, other view), plus the class loss."""
        out = super().training_step(batch, batch_idx)
        targets, predictions = out["momentum_z"], out["p"]
        neg_cos_sim = sum(
            byol_loss_func(predictions[v2], targets[v1])
            for v1 in range(self.num_large_crops)
            for v2 in range(self.num_crops)
            if v1 != v2
        )
        z_std = spread(out["z"][: self.num_large_crops])
        self._log_train(train_neg_cos_sim=neg_cos_sim, train_z_std=z_std)
        return neg_cos_sim + out["loss"]
