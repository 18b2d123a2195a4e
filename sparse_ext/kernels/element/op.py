# SPDX-License-Identifier: MIT
"""The kernel as an operator of torch, for `torch.compile` and `torch.export`.

`torch.ops.sparse_ext.element_conv2d(x, weight, mask, bias, stride, padding, dilation)` is
`conv2d(x, weight, bias, ...)` of a weight that is zero where `mask` is, on the CPU. A program that
holds it needs `import sparse_ext.kernels.element.op` where it runs. Its gradient is that of kept
weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparse_ext.kernels.element.function import input_gradient, products, weight_gradient
from sparse_ext.kernels.element.plan import Plan
from sparse_ext.kernels.plan import Window

_KEPT = 512  # plans at most; a network has a few dozen
_plans: dict[tuple, Plan] = {}


def _plan(mask: Tensor, weight: Tensor, window: Window) -> Plan:
    """Found by where the mask lies in memory, and checked against its content every time."""
    key = (mask.data_ptr(), tuple(mask.shape), weight.stride(), window)
    plan = _plans.get(key)
    if plan is None or not plan.fits(mask, weight.stride()):
        if len(_plans) >= _KEPT:
            _plans.clear()
        plan = _plans[key] = Plan(mask, window, weight.stride())
    return plan


def _window(stride: list[int], padding: list[int], dilation: list[int]) -> Window:
    first, second, third = ((int(p[0]), int(p[1])) for p in (stride, padding, dilation))
    return Window(first, second, third)


@torch.library.custom_op("sparse_ext::element_conv2d", mutates_args=(), device_types="cpu")
def element_conv2d(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    """conv2d(x, weight, bias) of the kept weights; (N, C_out, H', W'), stored as [C][H][W][N]."""
    plan = _plan(mask, weight, _window(stride, padding, dilation))
    return products(x, weight, plan, bias=bias)


@element_conv2d.register_fake
def _(x, weight, mask, bias, stride, padding, dilation):
    window = _window(stride, padding, dilation)
    rows, columns = window.output_size(x.shape[2:], weight.shape[2:])
    return x.new_empty(weight.shape[0], rows, columns, x.shape[0]).permute(3, 0, 1, 2)


@torch.library.custom_op("sparse_ext::element_conv2d_backward", mutates_args=(), device_types="cpu")
def element_conv2d_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> tuple[Tensor, Tensor]:
    """Gradients of input and of kept weights."""
    plan = _plan(mask, weight, _window(stride, padding, dilation))
    size = (x.shape[2], x.shape[3])
    to_x = input_gradient(grad, weight, plan, size)
    return to_x, weight_gradient(x, grad, weight, plan)


@element_conv2d_backward.register_fake
def _(grad, x, weight, mask, stride, padding, dilation):
    n, c, h, w = x.shape
    return x.new_empty(c, h, w, n).permute(3, 0, 1, 2), torch.empty_like(weight)


def _remember(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, weight, mask, bias, *sides = inputs
    ctx.save_for_backward(x, weight, mask)
    ctx.sides, ctx.bias = sides, bias is not None


def _backward(ctx: Any, grad: Tensor) -> tuple:
    x, weight, mask = ctx.saved_tensors
    to_x, to_weight = torch.ops.sparse_ext.element_conv2d_backward(
        grad, x, weight, mask, *ctx.sides
    )
    to_bias = grad.sum((0, 2, 3)) if ctx.bias else None
    return to_x, to_weight, None, to_bias, None, None, None


element_conv2d.register_autograd(_backward, setup_context=_remember)
