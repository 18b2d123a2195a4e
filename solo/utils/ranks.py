# SPDX-License-Identifier: MIT
"""The processes that train together: how many, what each holds, gathering and sharing.

All functions do nothing in a run with one process.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch import distributed as dist


def world_size() -> int:
    """Number of processes that train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def device() -> torch.device:
    """Where tensors must be for the collectives of the current backend."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


def gather_rows(tensor: Tensor) -> Tensor:
    """The rows of all ranks in the order of ranks, on every rank; they may have unlike numbers."""
    if world_size() == 1:
        return tensor
    plain = tensor.to(torch.uint8) if tensor.dtype is torch.bool else tensor
    mine = plain.detach().to(device()).contiguous()
    counts = [torch.zeros(1, dtype=torch.int64, device=mine.device) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([len(mine)], device=mine.device))
    most = int(torch.cat(counts).max())
    padded = torch.cat([mine, mine.new_zeros((most - len(mine), *mine.shape[1:]))])
    everyone = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(everyone, padded)
    rows = [part[: int(n)] for part, n in zip(everyone, counts, strict=True)]
    return torch.cat(rows).to(device=tensor.device, dtype=tensor.dtype)


def share(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors (any dtype and memory format) by those of rank 0, in place."""
    if world_size() == 1:
        return
    for tensor in tensors:
        plain = tensor.to(torch.uint8) if tensor.dtype is torch.bool else tensor
        buffer = plain.detach().to(device()).contiguous().clone()
        dist.broadcast(buffer, src=0)
        with torch.no_grad():
            tensor.copy_(buffer)


def share_value(value: float) -> float:
    """Give every process the number that rank 0 has."""
    if world_size() == 1:
        return value
    buffer = torch.tensor([value], dtype=torch.float64, device=device())
    dist.broadcast(buffer, src=0)
    return buffer.item()


def mean_with_own_gradient(value: Tensor) -> Tensor:
    """Mean of a 0-dim tensor over the processes, with this process's gradient.

    DDP averages the gradients of the processes, which makes them that of the mean.
    """
    if world_size() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return value + (total / world_size() - value.detach())


def distributed() -> bool:
    """Whether a process group of torch.distributed is initialised."""
    return dist.is_available() and dist.is_initialized()


def get_rank() -> int:
    """This process's rank, 0 without a process group."""
    return dist.get_rank() if distributed() else 0


def get_world_size() -> int:
    """The number of processes, 1 without a process group."""
    return dist.get_world_size() if distributed() else 1


class GatherLayer(torch.autograd.Function):
    """All ranks' tensors as a tuple; the backward pass sums each rank's gradients for its own."""

    @staticmethod
    def forward(ctx, x: Tensor) -> tuple[Tensor, ...]:
        if not distributed():
            return (x.clone(),)
        x = x.contiguous()  # what is sent is memory, whose order may differ between ranks
        output = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(output, x)
        return tuple(output)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> Tensor:
        gradients = torch.stack(grads).contiguous()
        if distributed():
            dist.all_reduce(gradients)
        return gradients[get_rank()]


def gather(X: Tensor, dim: int = 0) -> Tensor:
    """`X` of every rank joined along `dim`, differentiable; `X` itself without a process group."""
    if not distributed():
        return X
    if not X.is_floating_point():
        return concat_all_gather_no_grad(X, dim)
    return torch.cat(GatherLayer.apply(X), dim=dim)


@torch.no_grad()
def concat_all_gather_no_grad(tensor: Tensor, dim: int = 0) -> Tensor:
    """`tensor` of every rank joined along `dim`, without gradient."""
    if not distributed():
        return tensor
    tensor = tensor.contiguous()  # what is sent is memory, whose order may differ between ranks
    output = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(output, tensor)
    return torch.cat(output, dim=dim)
