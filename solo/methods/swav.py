# SPDX-License-Identifier: MIT
"""SwAV (Caron et al. 2020): predict a view's cluster assignment from the other views (eq. 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from solo.losses.swav import swav_loss_func
from solo.methods.base import BaseMethod
from solo.methods.heads import Head, WeightNormLinear, mlp
from solo.methods.queues import LateBuffersMixin
from solo.utils.ranks import get_world_size
from solo.utils.sinkhorn_knopp import SinkhornKnopp


class SwAV(LateBuffersMixin, BaseMethod):
    """Assignments come from the large crops, predictions from every crop.

    A queue (large crops, queue_size / ranks, D) of this rank's last projections, newest first,
    joins the clustering from epoch `epoch_queue_starts` on.
    """

    KWARGS = {
        "proj_hidden_dim": int,
        "proj_output_dim": int,
        "temperature": float,
        "queue_size": 65536,
        "num_prototypes": 3000,
        "sk_epsilon": 0.05,
        "sk_iters": 3,
        "freeze_prototypes_epochs": 1,
        "epoch_queue_starts": 15,
    }
    HEADS = {
        "projector": Head("z", unit=True),
        "prototypes": Head("p", of="z", of_unit=True),
    }
    HEADS_ON_SMALL_CROPS = True
    LATE_BUFFERS = ("queue",)

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        kwargs = cfg.method_kwargs
        self.proj_output_dim: int = kwargs.proj_output_dim
        self.temperature: float = kwargs.temperature
        self.queue_size: int = kwargs.queue_size
        self.sk_epsilon: float = kwargs.sk_epsilon
        self.sk_iters: int = kwargs.sk_iters
        self.freeze_prototypes_epochs: int = kwargs.freeze_prototypes_epochs
        self.epoch_queue_starts: int = kwargs.epoch_queue_starts
        self.projector = mlp(self.features_dim, kwargs.proj_hidden_dim, self.proj_output_dim)
        self.prototypes = WeightNormLinear(self.proj_output_dim, kwargs.num_prototypes)

    def on_train_start(self) -> None:
        """Make the clustering and, now that the ranks are known, the queue."""
        super().on_train_start()
        ranks = get_world_size()
        self.sk = SinkhornKnopp(self.sk_iters, self.sk_epsilon, ranks)
        if self.queue_size > 0:
            shape = (self.num_large_crops, self.queue_size // ranks, self.proj_output_dim)
            self.start_late_buffer("queue", torch.zeros(shape, device=self.device))

    @torch.no_grad()
    def get_assignments(self, preds: list[Tensor]) -> list[Tensor]:
        """Balanced soft assignments (N, K) of the large crops' scores (N, K)."""
        assignments = []
        for view, scores in enumerate(preds):
            n = len(scores)
            if self.queue_size > 0 and self.current_epoch >= self.epoch_queue_starts:
                scores = torch.cat((scores, self.prototypes(self.queue[view])))
            assignments.append(self.sk(scores)[:n])
        return assignments

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """Cross entropy of every crop's scores under the other large crops' assignments."""
        out = super().training_step(batch, batch_idx)
        large = slice(self.num_large_crops)
        assignments = self.get_assignments(out["p"][large])
        swav_loss = swav_loss_func(out["p"], assignments, self.temperature)
        if self.queue_size > 0:
            newest = torch.stack(out["z"][large]).detach().to(self.queue.dtype)
            shifted = torch.cat((newest, self.queue), dim=1)[:, : self.queue.shape[1]]
            self.queue.copy_(shifted)
        self._log_train(train_swav_loss=swav_loss)
        return swav_loss + out["loss"]

    def on_after_backward(self) -> None:
        """Hold the prototypes still in the first epochs (section 4)."""
        if self.current_epoch < self.freeze_prototypes_epochs:
            for p in self.prototypes.parameters():
                p.grad = None
