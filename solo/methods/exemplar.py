# SPDX-License-Identifier: MIT
"""Exemplar (Dosovitskiy et al. 2014) in the triplet form of Doersch and Zisserman (2017)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig
from torch import Tensor, nn

from solo.losses.exemplar import exemplar_loss_func
from solo.methods.base import BaseMethod
from solo.methods.heads import Head


class Exemplar(BaseMethod):
    """Two views of an image are closer to each other than to any other image, by a margin.

    The margin of 0.5 and the 128 outputs of the linear head are those of our specification; the
    paper of Caron et al. gives neither.
    """

    KWARGS = {"proj_output_dim": 128, "margin": 0.5}
    HEADS = {"projector": Head("z")}

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        self.margin: float = cfg.method_kwargs.margin
        self.projector = nn.Linear(self.features_dim, cfg.method_kwargs.proj_output_dim)

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """Triplet loss over both views plus the online classifier's loss."""
        out = super().training_step(batch, batch_idx)
        triplet_loss = exemplar_loss_func(*out["z"], margin=self.margin)
        self._log_train(train_triplet_loss=triplet_loss)
        return triplet_loss + out["loss"]
