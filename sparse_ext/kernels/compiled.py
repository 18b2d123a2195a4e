# SPDX-License-Identifier: MIT
"""The block-sparse convolution in C++ (`cpp/`): float32 on the CPU, same as `reference`.

Activations are read and written in channels_last; others are converted on the way in.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from sparse_ext.kernels import build
from sparse_ext.kernels.plan import Listing, Plan

_LAST = torch.channels_last


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
    """(N, C_in, H, W) -> (N, C_out, H', W'), in channels_last."""
    size = plan.window.output_size(tuple(x.shape[2:]), plan.kernel)
    out = torch.empty(len(x), plan.shape[0], *size, memory_format=_LAST)
    blocks = _gather(weight, plan, plan.forward, transposed=False)
    _pass(plan.forward, _last(x), bias, blocks, out, plan.window.stride, (1, 1))
    return out


def input_gradient(grad: Tensor, weight: Tensor, plan: Plan, size: tuple[int, int]) -> Tensor:
    """(N, C_out, H', W') -> (N, C_in, H, W) with (H, W) = `size`, in channels_last."""
    out = torch.empty(len(grad), plan.shape[1], *size, memory_format=_LAST)
    blocks = _gather(weight, plan, plan.backward, transposed=True)
    _pass(plan.backward, _last(grad), None, blocks, out, (1, 1), plan.window.stride)
    return out


def weight_gradient(x: Tensor, grad: Tensor, plan: Plan, weight: Tensor) -> Tensor:
    """Gradient of the kept blocks, zero elsewhere: shape and memory format of `weight`."""
    lib, listing, count = build.library(), plan.forward, len(plan.kept)
    x, grad, out = _last(x), _last(grad), torch.zeros_like(weight)
    geometry = _geometry(listing, x, grad, plan.window.stride, (1, 1))
    lib.block_conv_sums.restype = ctypes.c_int64
    sums = x.new_empty(lib.block_conv_sums(geometry, _int(count)))
    lists = [_ptr(t) for t in (listing.entries, listing.ranges, listing.phases)]
    shape, strides = _weight_layout(out)
    lib.block_conv_weight_gradient(
        *(geometry, _ptr(x), _ptr(grad), *lists, _int(count), shape, strides),
        *(_ptr(listing.coordinates), _ptr(sums), _ptr(out)),
    )
    return out


def _pass(
    listing: Listing,
    source: Tensor,
    bias: Tensor | None,
    blocks: Tensor,
    target: Tensor,
    source_step: tuple[int, int],
    target_step: tuple[int, int],
) -> None:
    bias = None if bias is None else bias.contiguous()
    build.library().block_conv_pass(
        _geometry(listing, source, target, source_step, target_step),
        *(_ptr(t) for t in (source, bias, blocks)),
        *(_ptr(t) for t in (listing.entries, listing.ranges, listing.phases, target)),
    )


def _gather(weight: Tensor, plan: Plan, listing: Listing, transposed: bool) -> Tensor:
    """Kept blocks one after the other; vectors run over outputs, transposed over inputs."""
    blocks = weight.new_empty(len(plan.kept), 64)
    shape, strides = _weight_layout(weight)
    build.library().block_conv_gather(
        *(_ptr(weight), shape, strides, _ptr(listing.coordinates), _int(len(blocks))),
        *(_int(transposed), _ptr(blocks)),
    )
    return blocks


def _geometry(
    listing: Listing,
    source: Tensor,
    target: Tensor,
    source_step: tuple[int, int],
    target_step: tuple[int, int],
) -> ctypes.Array:
    """The struct `Geometry` of the C++ source."""
    sides = (*source.shape[1:], *source_step, *target.shape[1:], *target_step)
    return _ints([len(source), *sides, *listing.extent, len(listing.phases)])


def _weight_layout(weight: Tensor) -> tuple[ctypes.Array, ctypes.Array]:
    """Outputs, inputs, kernel positions; and their strides."""
    outputs, inputs, _, columns = weight.shape
    strides = weight.stride()
    if strides[2] != columns * strides[3]:
        raise RuntimeError(f"A weight of strides {strides} has no single stride over its kernel.")
    return _ints([outputs, inputs, weight[0, 0].numel()]), _ints([*strides[:2], strides[3]])


def _last(x: Tensor) -> Tensor:
    """In channels_last, whatever strides torch gives to sides of length 1."""
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def _ptr(x: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if x is None else x.data_ptr())


def _int(value: int) -> ctypes.c_int64:
    return ctypes.c_int64(value)


def _ints(values: Sequence[int]) -> ctypes.Array:
    return (ctypes.c_int64 * len(values))(*values)
