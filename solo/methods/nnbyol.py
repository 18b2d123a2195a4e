# SPDX-License-Identifier: MIT
"""NNBYOL: BYOL that predicts the nearest neighbour of the momentum projection (NNCLR, sec. 4.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from solo.losses.byol import byol_loss_func
from solo.methods.base import BaseMomentumMethod
from solo.methods.byol import BYOL
from solo.methods.heads import Head, spread
from solo.methods.queues import NeighbourQueueMixin


class NNBYOL(NeighbourQueueMixin, BYOL):
    """Neighbours come from a queue of past momentum projections of view 1."""

    KWARGS = {**BYOL.KWARGS, "queue_size": 65536}
    SMALL_CROPS = False
    HEADS = {**BYOL.HEADS, "projector": Head("z", momentum_unit=True)}

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        self.queue_size: int = cfg.method_kwargs.queue_size
        self.register_neighbours(self.queue_size, cfg.method_kwargs.proj_output_dim)

    def forward(self, X: Tensor, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Encode images as BYOL does; further arguments are ignored."""
        return super().forward(X)

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """BYOL's loss of each view's prediction against the other view's neighbour."""
        targets = batch[-1]
        out = BaseMomentumMethod.training_step(self, batch, batch_idx)
        p1, p2 = out["p"][:2]
        z1, z2 = out["momentum_z"]
        slots, neighbours = self.find_nn(torch.cat((z1, z2)))
        nn1, nn2 = neighbours.chunk(2)
        neg_cos_sim = byol_loss_func(p1, nn2) + byol_loss_func(p2, nn1)
        z_std = spread(out["z"][: self.num_large_crops])
        self._log_train(train_neg_cos_sim=neg_cos_sim, train_z_std=z_std)
        self.log_neighbour_accuracy(slots[: len(z1)], targets)
        self.dequeue_and_enqueue(z1, targets)
        return neg_cos_sim + out["loss"]
