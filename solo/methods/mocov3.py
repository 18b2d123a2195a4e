# SPDX-License-Identifier: MIT
"""MoCo v3 (Chen, Xie & He 2021): InfoNCE against the batch's momentum keys (algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from omegaconf import DictConfig
from torch import Tensor, nn

from solo.losses.mocov3 import mocov3_loss_func
from solo.methods.base import BaseMomentumMethod
from solo.methods.heads import Head, mlp, momentum_pair


class MoCoV3(BaseMomentumMethod):
    """No queue; a predictor on the queries; deeper heads on ViTs than on ResNets."""

    KWARGS = {
        "proj_hidden_dim": int,
        "proj_output_dim": int,
        "pred_hidden_dim": int,
        "temperature": float,
    }
    HEADS = {"projector": Head("z", momentum_output="k"), "predictor": Head("q", of="z")}

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        kwargs = cfg.method_kwargs
        hidden, out = kwargs.proj_hidden_dim, kwargs.proj_output_dim
        self.temperature: float = kwargs.temperature
        resnet = "resnet" in self.backbone_name
        self.projector, self.momentum_projector = momentum_pair(
            lambda: self._build_mlp(2 if resnet else 3, self.features_dim, hidden, out)
        )
        self.predictor = self._build_mlp(2, out, kwargs.pred_hidden_dim, out, last_bn=not resnet)

    def _build_mlp(
        self, num_layers: int, input_dim: int, mlp_dim: int, output_dim: int, last_bn: bool = True
    ) -> nn.Sequential:
        """Linear layers without bias; the last BatchNorm has no scale and shift."""
        dims = [input_dim, *[mlp_dim] * (num_layers - 1), output_dim]
        return mlp(
            *dims,
            bias=False,
            activation=partial(nn.ReLU, inplace=True),
            last_norm="plain" if last_bn else "none",
        )

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """Each view's queries against the other view's keys, plus the class loss."""
        out = super().training_step(batch, batch_idx)
        (q1, q2), (k1, k2) = out["q"], out["momentum_k"]
        contrastive_loss = mocov3_loss_func(
            q1, k2, temperature=self.temperature
        ) + mocov3_loss_func(q2, k1, temperature=self.temperature)
        self._log_train(train_contrastive_loss=contrastive_loss)
        return contrastive_loss + out["loss"]
