# SPDX-License-Identifier: MIT
"""MoCo v2+ (He et al. 2020; Chen et al. 2020): contrast with a queue of momentum keys (eq. 1).

The plus: both views serve as query and as key, each with a queue of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from solo.losses.mocov2plus import mocov2plus_loss_func
from solo.methods.base import BaseMomentumMethod
from solo.methods.heads import Head, mlp, momentum_pair
from solo.methods.queues import QueueMixin


class MoCoV2Plus(QueueMixin, BaseMomentumMethod):
    """Queue: (2 views, proj_output_dim, queue_size), unit columns."""

    KWARGS = {
        "proj_hidden_dim": int,
        "proj_output_dim": int,
        "temperature": float,
        "queue_size": 65536,
    }
    HEADS = {"projector": Head("z", unit=True)}

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        kwargs = cfg.method_kwargs
        hidden, out = kwargs.proj_hidden_dim, kwargs.proj_output_dim
        self.temperature: float = kwargs.temperature
        self.queue_size: int = kwargs.queue_size
        self.projector, self.momentum_projector = momentum_pair(
            lambda: mlp(self.features_dim, hidden, out, norm=False)
        )
        self.register_queue((2, out, self.queue_size), slot_dim=2, unit_dim=1)

    def _dequeue_and_enqueue(self, keys: Tensor) -> None:
        """Replace the oldest keys of both queues by all ranks' `keys` (2, N, D)."""
        self.enqueue(keys.transpose(1, 2))

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """InfoNCE of each view's queries against the other view's keys and queue."""
        out = super().training_step(batch, batch_idx)
        q1, q2 = out["z"]
        k1, k2 = out["momentum_z"]
        # a copy: enqueueing below must not change what the backward pass reads
        queue = self.queue.clone().detach()
        nce_loss = (
            mocov2plus_loss_func(q1, k2, queue[1], self.temperature)
            + mocov2plus_loss_func(q2, k1, queue[0], self.temperature)
        ) / 2
        self._dequeue_and_enqueue(torch.stack((k1, k2)))
        self._log_train(train_nce_loss=nce_loss)
        return nce_loss + out["loss"]
