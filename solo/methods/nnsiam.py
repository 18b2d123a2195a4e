# SPDX-License-Identifier: MIT
"""NNSiam: SimSiam that predicts the nearest neighbour of the other view (NNCLR, sec. 4.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from solo.losses.simsiam import simsiam_loss_func
from solo.methods.base import BaseMethod
from solo.methods.heads import Head, spread
from solo.methods.queues import NeighbourQueueMixin
from solo.methods.simsiam import SimSiam


class NNSiam(NeighbourQueueMixin, SimSiam):
    """Neighbours come from a queue of past projections of view 1."""

    KWARGS = {**SimSiam.KWARGS, "queue_size": 65536}
    HEADS = {**SimSiam.HEADS, "projector": Head("z", unit=True)}

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        self.queue_size: int = cfg.method_kwargs.queue_size
        self.register_neighbours(self.queue_size, cfg.method_kwargs.proj_output_dim)

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """SimSiam's loss of each view's prediction against the other view's neighbour."""
        targets = batch[-1]
        out = BaseMethod.training_step(self, batch, batch_idx)
        (z1, z2), (p1, p2) = out["z"], out["p"]
        slots, neighbours = self.find_nn(torch.cat((z1, z2)))
        nn1, nn2 = neighbours.chunk(2)
        neg_cos_sim = simsiam_loss_func(p1, nn2) / 2 + simsiam_loss_func(p2, nn1) / 2
        self._log_train(train_neg_cos_sim=neg_cos_sim, train_z_std=spread(out["z"]))
        self.log_neighbour_accuracy(slots[: len(z1)], targets)
        self.dequeue_and_enqueue(z1, targets)
        return neg_cos_sim + out["loss"]
