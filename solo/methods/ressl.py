# SPDX-License-Identifier: MIT
"""ReSSL (Zheng et al. 2021): a strong view must relate to other images as a weak view does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from solo.losses.ressl import ressl_loss_func
from solo.methods.base import BaseMomentumMethod
from solo.methods.heads import Head, mlp, momentum_pair
from solo.methods.queues import QueueMixin


class ReSSL(QueueMixin, BaseMomentumMethod):
    """View 1 (strong) goes through the online network, view 2 (weak) through the momentum one.

    The other images are a queue (queue_size, proj_output_dim) of past momentum projections.
    """

    KWARGS = {
        "proj_hidden_dim": int,
        "proj_output_dim": int,
        "temperature_q": float,
        "temperature_k": float,
        "queue_size": 65536,
    }
    IGNORED_KWARGS = {"base_tau_momentum", "final_tau_momentum", "momentum_classifier"}
    HEADS = {"projector": Head("z", unit=True)}

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        kwargs = cfg.method_kwargs
        hidden, out = kwargs.proj_hidden_dim, kwargs.proj_output_dim
        self.temperature_q: float = kwargs.temperature_q
        self.temperature_k: float = kwargs.temperature_k
        self.queue_size: int = kwargs.queue_size
        self.projector, self.momentum_projector = momentum_pair(
            lambda: mlp(self.features_dim, hidden, out, norm=False)
        )
        self.register_queue((self.queue_size, out), slot_dim=0, unit_dim=1)

    def dequeue_and_enqueue(self, k: Tensor) -> None:
        """Replace the oldest rows of the queue by all ranks' features `k` (N, D)."""
        self.enqueue(k)

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """Cross entropy between the two views' similarities to the queue."""
        out = super().training_step(batch, batch_idx)
        q, k = out["z"][0], out["momentum_z"][1]
        # a copy: enqueueing below must not change what the backward pass reads
        queue = self.queue.clone().detach()
        ressl_loss = ressl_loss_func(q, k, queue, self.temperature_q, self.temperature_k)
        self._log_train(train_ressl_loss=ressl_loss)
        self.dequeue_and_enqueue(k)
        return ressl_loss + out["loss"]
