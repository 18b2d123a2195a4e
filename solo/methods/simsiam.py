# SPDX-License-Identifier: MIT
"""SimSiam (Chen & He 2021): predict the other view's projection, without its gradient (eq. 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from solo.losses.simsiam import simsiam_loss_func
from solo.methods.base import BaseMethod
from solo.methods.heads import Head, mlp, simsiam_projector, spread


class SimSiam(BaseMethod):
    """The predictor keeps its learning rate for the whole run (paper, section 4.2)."""

    KWARGS = {"proj_hidden_dim": int, "proj_output_dim": int, "pred_hidden_dim": int}
    IGNORED_KWARGS = {"temperature"}
    HEADS = {
        "projector": Head("z"),
        "predictor": Head("p", of="z", group={"static_lr": True}),
    }

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        kwargs = cfg.method_kwargs
        out = kwargs.proj_output_dim
        self.projector = simsiam_projector(self.features_dim, kwargs.proj_hidden_dim, out)
        self.predictor = mlp(out, kwargs.pred_hidden_dim, out, bias=False, last_bias=True)

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """Mean of the two negative cosine similarities plus the class loss."""
        out = super().training_step(batch, batch_idx)
        (z1, z2), (p1, p2) = out["z"], out["p"]
        neg_cos_sim = simsiam_loss_func(p1, z2) / 2 + simsiam_loss_func(p2, z1) / 2
        self._log_train(train_neg_cos_sim=neg_cos_sim, train_z_std=spread(out["z"]))
        return neg_cos_sim + out["loss"]
