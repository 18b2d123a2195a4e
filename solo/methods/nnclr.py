# SPDX-License-Identifier: MIT
"""NNCLR (Dwibedi et al. 2021): the nearest neighbour of a view attracts the other view (eq. 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from solo.losses.nnclr import nnclr_loss_func
from solo.methods.base import BaseMethod
from solo.methods.heads import Head, mlp
from solo.methods.queues import NeighbourQueueMixin


class NNCLR(NeighbourQueueMixin, BaseMethod):
    """Neighbours come from a queue of past projections of view 1."""

    KWARGS = {
        "proj_hidden_dim": int,
        "proj_output_dim": int,
        "pred_hidden_dim": int,
        "temperature": float,
        "queue_size": 65536,
    }
    HEADS = {"projector": Head("z", unit=True), "predictor": Head("p", of="z")}

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        kwargs = cfg.method_kwargs
        hidden, out = kwargs.proj_hidden_dim, kwargs.proj_output_dim
        self.temperature: float = kwargs.temperature
        self.queue_size: int = kwargs.queue_size
        self.projector = mlp(self.features_dim, hidden, hidden, out, last_norm="affine")
        self.predictor = mlp(out, kwargs.pred_hidden_dim, out)
        self.register_neighbours(self.queue_size, out)

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """InfoNCE of each view's neighbours against the other view's predictions."""
        targets = batch[-1]
        out = super().training_step(batch, batch_idx)
        z1, z2 = out["z"]
        p1, p2 = out["p"]
        slots, neighbours = self.find_nn(torch.cat((z1, z2)))
        nn1, nn2 = neighbours.chunk(2)
        nnclr_loss = (
            nnclr_loss_func(nn1, p2, self.temperature) + nnclr_loss_func(nn2, p1, self.temperature)
        ) / 2
        self._log_train(train_nnclr_loss=nnclr_loss)
        self.log_neighbour_accuracy(slots[: len(z1)], targets)
        self.dequeue_and_enqueue(z1, targets)
        return nnclr_loss + out["loss"]
