# SPDX-License-Identifier: MIT
"""DINO (Caron et al. 2021): the student predicts a centred, sharpened momentum teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from solo.compat import foreach_mul_, foreach_norm
from solo.errors import ConfigError
from solo.losses.dino import DINOLoss
from solo.methods.base import BaseMomentumMethod
from solo.methods.heads import Head, WeightNormLinear, mlp, momentum_pair


class DINOHead(nn.Module):
    """MLP, l2 normalisation, then a weight-normalised layer of prototypes (appendix C).

    Args:
        in_dim: dimension of the features.
        num_prototypes: output dimension K.
        use_bn: batch norm in the MLP.
        norm_last_layer: keep the prototypes at norm 1.
        num_layers: linear layers of the MLP.
        hidden_dim: its hidden dimension.
        bottleneck_dim: its output dimension.
    """

    def __init__(
        self,
        in_dim: int,
        num_prototypes: int,
        use_bn: bool = True,
        norm_last_layer: bool = True,
        num_layers: int = 3,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
    ):
        super().__init__()
        if num_layers == 1:
            self.mlp: nn.Module = nn.Linear(in_dim, bottleneck_dim)
        else:
            hidden = [hidden_dim] * (num_layers - 1)
            self.mlp = mlp(in_dim, *hidden, bottleneck_dim, norm=use_bn, activation=nn.GELU)
        self.apply(self._init_weights)
        self.last_layer = WeightNormLinear(
            bottleneck_dim, num_prototypes, learn_norm=not norm_last_layer
        )

    def _init_weights(self, m: nn.Module) -> None:
        if isinstance(m, nn.Linear):
            nn.init.trunc_normal_(m.weight, std=0.02)
            nn.init.zeros_(m.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_dim) to prototype scores (N, K)."""
        return self.last_layer(F.normalize(self.mlp(x), dim=-1))


class DINO(BaseMomentumMethod):
    """The teacher sees the large crops; the student those and the small ones.

    The paper's recipe is this with small crops, a weight decay that rises
    (`optimizer.final_weight_decay`), and, on a ViT, `backbone.kwargs.dynamic_img_size`; the
    recipes of solo-learn have none of the three.
    """

    KWARGS: Mapping[str, Any] = {
        "proj_hidden_dim": int,
        "proj_output_dim": int,
        "num_prototypes": int,
        "clip_grad": 0.0,
        "freeze_last_layer": 1,
        "norm_last_layer": True,
        "use_bn_in_head": False,
        "student_temperature": 0.1,
        "teacher_temperature": 0.07,
        "warmup_teacher_temperature": 0.04,
        "warmup_teacher_temperature_epochs": 0,
        "local_crops": True,
    }
    HEADS: Mapping[str, Head] = {"head": Head("z")}
    HEADS_ON_SMALL_CROPS = True
    SINKHORN_ITERS = 0

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        kwargs = cfg.method_kwargs
        self.clip_grad: float = kwargs.clip_grad
        self.freeze_last_layer: int = kwargs.freeze_last_layer
        self.head, self.momentum_head = momentum_pair(self._build_head)
        self.dino_loss_func = self._build_loss(self.num_crops)
        if self.multicrop and not kwargs.local_crops:
            raise ConfigError(
                f"method_kwargs.local_crops=False: {cfg.method}'s loss would not use the "
                f"{self.num_small_crops} small crops that 'augmentations' makes. Leave them out, "
                "or local_crops"
            )

    def _build_head(self) -> DINOHead:
        kwargs = self.cfg.method_kwargs
        return DINOHead(
            in_dim=self.features_dim,
            num_prototypes=kwargs.num_prototypes,
            use_bn=kwargs.use_bn_in_head,
            norm_last_layer=kwargs.norm_last_layer,
            hidden_dim=kwargs.proj_hidden_dim,
            bottleneck_dim=kwargs.proj_output_dim,
        )

    def _build_loss(self, views: int) -> DINOLoss:
        """The loss of a student's output that consists of `views` views."""
        kwargs = self.cfg.method_kwargs
        return DINOLoss(
            num_prototypes=kwargs.num_prototypes,
            student_temp=kwargs.student_temperature,
            warmup_teacher_temp=kwargs.warmup_teacher_temperature,
            teacher_temp=kwargs.teacher_temperature,
            warmup_teacher_temp_epochs=kwargs.warmup_teacher_temperature_epochs,
            num_epochs=self.max_epochs,
            num_large_crops=views,
            sinkhorn_iters=self.SINKHORN_ITERS,
        )

    @torch.no_grad()
    def dino_clip_gradients(self, clip: float) -> None:
        """Scale each encoder parameter's gradient down to norm `clip`."""
        grads = [p.grad for p in self.backbone.parameters() if p.grad is not None]
        scales = [(clip / (norm + 1e-6)).clamp(max=1) for norm in foreach_norm(grads)]
        foreach_mul_(grads, scales)

    def on_train_epoch_start(self) -> None:
        """Tell the loss the epoch: its teacher temperature warms up."""
        self.dino_loss_func.epoch = self.current_epoch

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """Cross entropy between the teacher's and the student's outputs of different views."""
        out = super().training_step(batch, batch_idx)
        terms = self.terms(out)
        self._log_train(**terms)
        return sum(terms.values()) + out["loss"]

    def terms(self, out: Mapping[str, Any]) -> dict[str, Tensor]:
        """The terms of the loss, by the names they are logged under.

        Args:
            out: what `BaseMomentumMethod.training_step` returns.
        """
        dino_loss = self.dino_loss_func(torch.cat(out["z"]), torch.cat(out["momentum_z"]))
        return {"dino_loss": dino_loss}

    def on_after_backward(self) -> None:
        """Clip the encoder's gradients; hold the prototypes still in the first epochs."""
        if self.clip_grad:
            self.dino_clip_gradients(self.clip_grad)
        if self.current_epoch < self.freeze_last_layer:
            for head in self.children():
                if isinstance(head, DINOHead):
                    for p in head.last_layer.parameters():
                        p.grad = None
