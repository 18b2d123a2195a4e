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
from sparse_ext.kernels.plan import SIZE, Listing, Plan

_LAST = torch.channels_last
_Steps = tuple[tuple[int, int], tuple[int, int]]  # of the source, of the target


def kept_blocks(weight: Tensor, plan: Plan) -> Tensor:
    """(blocks, 8 outputs, 8 inputs), one after the other, zero beyond the last channels."""
    blocks = weight.new_empty(len(plan.kept), SIZE, SIZE)
    weight = _plain(weight)
    build.library().block_conv_gather(
        *(_ptr(weight), _layout(weight), _ptr(plan.coordinates)),
        *(_int(len(blocks)), _ptr(blocks)),
    )
    return blocks


def forward(x: Tensor, blocks: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
    """(N, C_in, H, W) -> (N, C_out, H', W'), in channels_last."""
    size = plan.window.output_size(x.shape[2:], plan.kernel)
    out = torch.empty(len(x), plan.shape[0], *size, memory_format=_LAST)
    steps = (plan.window.stride, (1, 1))
    _pass(plan.forward, _last(x), bias, blocks, out, steps, transposed=False)
    return out


def input_gradient(grad: Tensor, blocks: Tensor, plan: Plan, size: tuple[int, int]) -> Tensor:
    """(N, C_out, H', W') -> (N, C_in, H, W) with (H, W) = `size`, in channels_last."""
    out = torch.empty(len(grad), plan.shape[1], *size, memory_format=_LAST)
    steps = ((1, 1), plan.window.stride)
    _pass(plan.backward, _last(grad), None, blocks, out, steps, transposed=True)
    return out


def weight_gradient(x: Tensor, grad: Tensor, plan: Plan, weight: Tensor) -> Tensor:
    """Gradient of the kept blocks, zero elsewhere: shape and memory format of `weight`."""
    lib, listing, count = build.library(), plan.forward, len(plan.kept)
    x, grad, out = _last(x), _last(grad), torch.empty_like(_plain(weight))
    geometry = _geometry(listing, x, grad, (plan.window.stride, (1, 1)))
    lib.block_conv_sums.restype = ctypes.c_int64
    sums = x.new_empty(lib.block_conv_sums(geometry, _int(count)))
    lists = [_ptr(t) for t in (listing.entries, listing.ranges, listing.phases)]
    lib.block_conv_weight_gradient(
        *(geometry, _ptr(x), _ptr(grad), *lists, _int(count), _layout(out)),
        *(_ptr(t) for t in (plan.coordinates, sums, out)),
    )
    return out


def _pass(
    listing: Listing,
    source: Tensor,
    bias: Tensor | None,
    blocks: Tensor,
    target: Tensor,
    steps: _Steps,
    transposed: bool,
) -> None:
    bias = None if bias is None else bias.contiguous()
    build.library().block_conv_pass(
        _geometry(listing, source, target, steps),
        *(_ptr(t) for t in (source, bias, blocks)),
        _int(transposed),
        *(_ptr(t) for t in (listing.entries, listing.ranges, listing.phases, target)),
    )


def _geometry(listing: Listing, source: Tensor, target: Tensor, steps: _Steps) -> ctypes.Array:
    """The struct `Geometry` of the C++ source."""
    sides = (*source.shape[1:], *steps[0], *target.shape[1:], *steps[1])
    return _ints([len(source), *sides, *listing.extent, len(listing.phases)])


def _plain(weight: Tensor) -> Tensor:
    """The weight, or a copy, in one of the two memory formats that `_layout` tells apart."""
    fits = weight.is_contiguous() or weight.is_contiguous(memory_format=_LAST)
    return weight if fits else weight.contiguous()


def _layout(weight: Tensor) -> ctypes.Array:
    """The struct `Weight` of the C++ source."""
    outputs, inputs, rows, columns = weight.shape
    steps = (rows * columns, 1) if weight.is_contiguous() else (1, inputs)
    return _ints([outputs, inputs, rows * columns, *steps])


def _last(x: Tensor) -> Tensor:
    """In channels_last, whatever strides torch gives to sides of length 1."""
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def _ptr(x: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if x is None else x.data_ptr())


def _int(value: int) -> ctypes.c_int64:
    return ctypes.c_int64(value)


def _ints(values: Sequence[int]) -> ctypes.Array:
    return (ctypes.c_int64 * len(values))(*values)
