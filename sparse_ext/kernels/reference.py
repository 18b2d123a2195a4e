# SPDX-License-Identifier: MIT
"""The block-sparse convolution in plain torch: what the compiled kernel must equal.

Any floating point type, any device; for checking and where no compiler is at hand, not for speed.
Each kernel position is one batched product of its kept blocks.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_ext.kernels.plan import SIZE, Plan


def kept_blocks(weight: Tensor, plan: Plan) -> Tensor:
    """(blocks, 8 outputs, 8 inputs) in the order of `plan.kept`, zero beyond the last channels."""
    outputs, inputs = plan.blocks
    pad = (0, inputs * SIZE - plan.shape[1], 0, outputs * SIZE - plan.shape[0])
    whole = F.pad(weight.permute(2, 3, 0, 1), pad)
    tiles = whole.unflatten(3, (inputs, SIZE)).unflatten(2, (outputs, SIZE)).transpose(3, 4)
    return tiles[plan.kept.to(weight.device).unbind(1)]


def forward(x: Tensor, blocks: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
    """(N, C_in, H, W) -> (N, C_out, H', W')."""
    source = _padded(_blocked(x, plan.blocks[1]), plan)
    rows, columns = plan.window.output_size(x.shape[2:], plan.kernel)
    out = x.new_zeros(len(x), rows, columns, plan.blocks[0], SIZE)
    for position, here, block_out, block_in in _positions(plan):
        seen = source[_seen(plan, position, rows, columns)][..., block_in, :]
        out.index_add_(3, block_out, torch.einsum("nhwki,koi->nhwko", seen, blocks[here]))
    out = _plain(out, plan.shape[0])
    return out if bias is None else out + bias.reshape(-1, 1, 1)


def input_gradient(grad: Tensor, blocks: Tensor, plan: Plan, size: tuple[int, int]) -> Tensor:
    """(N, C_out, H', W') -> (N, C_in, H, W) with (H, W) = `size`."""
    source = _blocked(grad, plan.blocks[0])
    target = _padded(grad.new_zeros(len(grad), *size, plan.blocks[1], SIZE), plan)
    for position, here, block_out, block_in in _positions(plan):
        products = torch.einsum("nhwko,koi->nhwki", source[..., block_out, :], blocks[here])
        target[_seen(plan, position, *grad.shape[2:])].index_add_(3, block_in, products)
    top, left = plan.window.padding
    return _plain(target[:, top : top + size[0], left : left + size[1]], plan.shape[1])


def weight_gradient(x: Tensor, grad: Tensor, plan: Plan, weight: Tensor) -> Tensor:
    """Gradient of the kept blocks, zero elsewhere: shape and memory format of `weight`."""
    source = _padded(_blocked(x, plan.blocks[1]), plan)
    grads = _blocked(grad, plan.blocks[0])
    tiles = weight.new_zeros(*plan.kernel, *plan.blocks, SIZE, SIZE)
    for position, _, block_out, block_in in _positions(plan):
        seen = source[_seen(plan, position, *grad.shape[2:])][..., block_in, :]
        products = torch.einsum("nhwko,nhwki->koi", grads[..., block_out, :], seen)
        tiles[position][block_out, block_in] = products
    whole = tiles.permute(2, 4, 3, 5, 0, 1).reshape(
        plan.blocks[0] * SIZE, plan.blocks[1] * SIZE, *plan.kernel
    )
    return torch.empty_like(weight).copy_(whole[: plan.shape[0], : plan.shape[1]])


def _positions(plan: Plan) -> Iterator[tuple[tuple[int, int], Tensor, Tensor, Tensor]]:
    """Kernel positions that keep blocks: which of the kept they are, output and input blocks."""
    for ky, kx in plan.kept[:, :2].unique(dim=0).tolist():
        here = ((plan.kept[:, 0] == ky) & (plan.kept[:, 1] == kx)).nonzero()[:, 0]
        yield (ky, kx), here, plan.kept[here, 2], plan.kept[here, 3]


def _blocked(x: Tensor, blocks: int) -> Tensor:
    """(N, C, H, W) as (N, H, W, blocks, 8), filled up with zeros."""
    last = F.pad(x.permute(0, 2, 3, 1), (0, blocks * SIZE - x.shape[1]))
    return last.reshape(*last.shape[:3], blocks, SIZE)


def _plain(x: Tensor, channels: int) -> Tensor:
    """Inverse of `_blocked`."""
    return x.flatten(3)[..., :channels].permute(0, 3, 1, 2)


def _padded(x: Tensor, plan: Plan) -> Tensor:
    vertical, horizontal = plan.window.padding
    return F.pad(x, (0, 0, 0, 0, horizontal, horizontal, vertical, vertical))


def _seen(plan: Plan, position: tuple[int, int], rows: int, columns: int) -> tuple[slice, ...]:
    """What a kernel position sees of the padded input."""
    slices = [slice(None)]
    for k, n, s, d in zip(
        position, (rows, columns), plan.window.stride, plan.window.dilation, strict=True
    ):
        slices.append(slice(k * d, k * d + (n - 1) * s + 1, s))
    return tuple(slices)
