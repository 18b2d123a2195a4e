# SPDX-License-Identifier: MIT
"""The layout in which images are the lanes of vectors: (N, C, H, W) stored as [C][H][W][N].

That is an ordinary strided tensor: torch's elementwise operations keep its strides, everything else
works on it as on any other, and nobody has to know. The functions here change the layout and never
a value, so their gradient is that of the identity.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from sparse_ext.kernels.element.native import library

TYPES = (torch.float32, torch.bfloat16)


class _Images(ctypes.Structure):
    """The struct `Images` of layout.h."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in ("count", "channels", "pixels", "step", "channel_step", "pixel_step")
    ]


def empty_lanes(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor of shape (N, C, H, W), stored as [C][H][W][N]."""
    n, c, h, w = shape
    return torch.empty(c, h, w, n, dtype=dtype).permute(3, 0, 1, 2)


def in_lanes(x: Tensor) -> bool:
    """Whether x is stored that way; with one image that is the contiguous format."""
    if x.dim() != 4 or x.dtype not in TYPES:
        return False
    (n, c, h, w), (image, channel, row, column) = x.shape, x.stride()
    ends = (n == 1 or image == 1) and (w == 1 or column == n)
    return ends and (h == 1 or row == w * n) and (c == 1 or channel == h * w * n)


def stays(x: Tensor) -> bool:
    """Whether a layer should leave x in lanes: with one image every layer's output looks so."""
    return x.shape[0] > 1 and in_lanes(x)


def to_lanes(x: Tensor) -> Tensor:
    """x with its values in lanes; x itself if they are."""
    if in_lanes(x):
        return x
    steps = _steps(x)
    if steps is None:
        x = x.contiguous()
        steps = _steps(x)
    out = empty_lanes(tuple(x.shape), x.dtype)
    half, threads = int(x.dtype == torch.bfloat16), torch.get_num_threads()
    arguments = ctypes.addressof(steps), x.data_ptr(), out.data_ptr(), threads  # type: ignore[arg-type]
    library().element_to_lanes(half, *arguments)
    return out


def from_lanes(x: Tensor, memory_format: torch.memory_format = torch.channels_last) -> Tensor:
    """A copy in `memory_format` of x, which lies in lanes."""
    out = torch.empty_like(x, memory_format=memory_format)
    steps = _steps(out)
    half, threads = int(x.dtype == torch.bfloat16), torch.get_num_threads()
    arguments = ctypes.addressof(steps), x.data_ptr(), out.data_ptr(), threads  # type: ignore[arg-type]
    library().element_from_lanes(half, *arguments)
    return out


def _steps(x: Tensor) -> _Images | None:
    """Of a tensor in one of torch's two memory formats; None for others."""
    n, c, h, w = x.shape
    if x.is_contiguous():
        return _Images(n, c, h * w, c * h * w, h * w, 1)
    if x.is_contiguous(memory_format=torch.channels_last):
        return _Images(n, c, h * w, c * h * w, 1, c)
    return None


class _Relaid(torch.autograd.Function):
    """x in another layout; its gradient comes in whatever layout it has."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, into: bool) -> Tensor:
        return to_lanes(x) if into else from_lanes(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        return grad, None


def laid_out(x: Tensor) -> Tensor:
    """x in channels_last if it lies in lanes, as torch's own convolutions want it."""
    if torch.jit.is_tracing() or torch.compiler.is_compiling():
        return x
    return _Relaid.apply(x, False) if stays(x) else x
