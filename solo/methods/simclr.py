# SPDX-License-Identifier: MIT
"""SimCLR (Chen et al. 2020): two views of an image attract, all other images repel (eq. 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from solo.losses.simclr import simclr_loss_func
from solo.methods.base import BaseMethod
from solo.methods.heads import Head, mlp


class SimCLR(BaseMethod):
    """Every crop, small ones too, is a view; positives are the crops of the same image."""

    KWARGS = {"proj_hidden_dim": int, "proj_output_dim": int, "temperature": float}
    HEADS = {"projector": Head("z")}
    HEADS_ON_SMALL_CROPS = True

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        kwargs = cfg.method_kwargs
        self.temperature: float = kwargs.temperature
        self.projector = mlp(
            self.features_dim, kwargs.proj_hidden_dim, kwargs.proj_output_dim, norm=False
        )

    def positives(self, batch: Sequence[Any]) -> Tensor:
        """(N,) numbers; rows with the same number attract. Here: the images' indexes."""
        return batch[0]

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """NT-Xent over all crops plus the online classifier's loss."""
        out = super().training_step(batch, batch_idx)
        indexes = self.positives(batch).repeat(self.num_crops)
        nce_loss = simclr_loss_func(torch.cat(out["z"]), indexes, temperature=self.temperature)
        self._log_train(train_nce_loss=nce_loss)
        return nce_loss + out["loss"]
