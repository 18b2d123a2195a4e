# SPDX-License-Identifier: MIT
"""The block-sparse convolution as one differentiable function."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from solo.errors import ConfigError, did_you_mean
from sparse_ext.kernels.plan import Plan

BACKENDS = ("compiled", "reference")


def backend_of(name: str) -> Any:
    """The module that holds the kernels of a backend.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in BACKENDS:
        raise ConfigError(f"backend={name!r} is no block kernel. {did_you_mean(name, BACKENDS)}")
    return import_module(f"sparse_ext.kernels.{name}")


def block_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    plan: Plan,
    backend: str = "compiled",
    dense_gradient: bool = True,
) -> Tensor:
    """`F.conv2d(x, weight, bias, ...)` of a weight that is zero outside the blocks of `plan`.

    Args:
        x: (N, C_in, H, W), float32 on the CPU for the compiled backend.
        weight: (C_out, C_in, kh, kw).
        bias: (C_out,) or None.
        plan: the kept blocks, and stride, padding and dilation.
        backend: `compiled` or `reference`.
        dense_gradient: the weight's gradient is that of the dense convolution (computed by torch,
            at the dense price); False: it is zero outside the kept blocks.
    """
    return _BlockConv.apply(x, weight, bias, plan, backend_of(backend), dense_gradient)


class _BlockConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        plan: Plan,
        backend: Any,
        dense_gradient: bool,
    ) -> Tensor:
        ctx.plan, ctx.backend, ctx.dense_gradient = plan, backend, dense_gradient
        ctx.size = tuple(x.shape[2:])
        blocks = backend.kept_blocks(weight, plan)
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight, blocks)
        return backend.forward(x, blocks, bias, plan)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (grad,), (x, weight, blocks), plan = grads, ctx.saved_tensors, ctx.plan
        wanted = ctx.needs_input_grad
        to_x = to_weight = None
        if wanted[0]:
            to_x = ctx.backend.input_gradient(grad, blocks, plan, ctx.size)
        if wanted[1] and ctx.dense_gradient:
            to_weight = dense_weight_gradient(x, grad, weight, plan)
        elif wanted[1]:
            to_weight = ctx.backend.weight_gradient(x, grad, plan, weight)
        to_bias = grad.sum((0, 2, 3)) if wanted[2] else None
        return to_x, to_weight, to_bias, None, None, None


def dense_weight_gradient(x: Tensor, grad: Tensor, weight: Tensor, plan: Plan) -> Tensor:
    """The gradient of every weight, pruned ones too, by torch's own kernel."""
    window, only_weight = plan.window, (False, True, False)
    sides = (list(window.stride), list(window.padding), list(window.dilation))
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, *sides, False, [0, 0], 1, only_weight
    )[1]
