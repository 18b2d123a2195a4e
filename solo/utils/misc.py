# SPDX-License-Identifier: MIT
"""Collectives that keep or drop the gradient."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def get_rank() -> int:
    """Rank of this process, 0 outside of a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class GatherLayer(torch.autograd.Function):
    """All-gather whose backward sums over processes the gradients of each process's share."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, ...]:
        if not (dist.is_available() and dist.is_initialized()):
            return (x.view_as(x),)
        shares = [torch.zeros_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(shares, x.contiguous())
        return tuple(shares)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        if not (dist.is_available() and dist.is_initialized()):
            return grads[0]
        total = torch.stack(grads)
        dist.all_reduce(total)
        return total[dist.get_rank()]


def gather(X: Tensor, dim: int = 0) -> Tensor:
    """Concatenate the tensors of all processes along `dim`, keeping gradients."""
    return torch.cat(GatherLayer.apply(X), dim=dim)


@torch.no_grad()
def concat_all_gather_no_grad(tensor: Tensor) -> Tensor:
    """Concatenate the tensors of all processes along dimension 0, without gradients."""
    if not (dist.is_available() and dist.is_initialized()):
        return tensor
    shares = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(shares, tensor.contiguous())
    return torch.cat(shares)
