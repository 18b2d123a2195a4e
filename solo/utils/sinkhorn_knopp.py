# SPDX-License-Identifier: MIT
"""Sinkhorn-Knopp: soft cluster assignments of equal size (SwAV, Caron et al. 2020, equation 3)."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


class SinkhornKnopp(nn.Module):
    """Turns scores into assignments whose rows sum to one and whose clusters are balanced.

    Args:
        num_iters: alternations between clusters and samples.
        epsilon: entropy weight; smaller is harder.
        world_size: processes that share the batch.
    """

    def __init__(self, num_iters: int = 3, epsilon: float = 0.05, world_size: int = 1):
        super().__init__()
        self.num_iters = num_iters
        self.epsilon = epsilon
        self.world_size = world_size

    @torch.no_grad()
    def forward(self, Q: Tensor, samples: Tensor | None = None) -> Tensor:
        """Balance the scores of the samples of all processes.

        Args:
            Q: scores of this process's samples, (N, K).
            samples: number of samples of all processes, where they have unlike numbers.

        Returns:
            (N, K), every row a distribution.
        """
        Q = (Q if Q.dtype == torch.double else Q.float()).div(self.epsilon).exp().T
        clusters = Q.shape[0]
        samples = Q.shape[1] * self.world_size if samples is None else samples
        Q = Q / self._total(Q.sum())
        for _ in range(self.num_iters):
            Q = Q / self._total(Q.sum(dim=1, keepdim=True)) / clusters
            Q = Q / Q.sum(dim=0, keepdim=True) / samples
        return (Q * samples).T

    def _total(self, x: Tensor) -> Tensor:
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(x)
        return x
