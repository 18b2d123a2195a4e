# SPDX-License-Identifier: MIT
"""Convolutions and linear maps by their kept weights, as differentiable functions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sparse_ext.kernels.element.geometry import (
    BOTH_GRADIENTS,
    FORWARD,
    INPUT_GRADIENT,
    WEIGHT_GRADIENT,
)
from sparse_ext.kernels.element.lanes import empty_lanes, from_lanes, to_lanes
from sparse_ext.kernels.element.native import library
from sparse_ext.kernels.element.plan import Kept, Plan, machine


def native_type(dtype: torch.dtype) -> torch.dtype:
    """In which activations of `dtype` are computed: bfloat16 only where the processor can."""
    half = dtype == torch.bfloat16 and library().element_bfloat16()
    return torch.bfloat16 if half else torch.float32


def products(
    x: Tensor,
    weight: Tensor | Kept,
    plan: Plan,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
    key: object = None,
) -> Tensor:
    """relu(conv2d(x, weight) * scale + bias + residual) in lanes; no gradients.

    Args:
        x: (N, C_in, H, W), float32 or bfloat16, in any layout.
        weight: float32, in the memory format that `plan` was made for, or its kept ones.
        plan: of its mask.
        scale: (C_out,), float32.
        bias: likewise.
        residual: as the result.
        relu: whether negative results become zero.
        key: see `Pass.fill`.
    """
    kind = native_type(x.dtype)
    source = to_lanes(x.to(kind))
    size = plan.window.output_size(x.shape[2:], plan.shape[2:])  # type: ignore[arg-type]
    out = empty_lanes((len(x), plan.shape[0], *size), kind)
    rest = None if residual is None else to_lanes(residual.to(kind))
    kept = weight if isinstance(weight, Kept) else Kept(plan, weight)
    for part in plan.passes(FORWARD, len(x), (x.shape[2], x.shape[3]), kind):
        part.fill(kept, key)
        part.run(source, out, scale, bias, rest, relu)
    return out if kind == x.dtype else out.to(x.dtype)


def input_gradient(
    grad: Tensor,
    weight: Tensor | Kept,
    plan: Plan,
    size: tuple[int, int],
    further: Tensor | None = None,
) -> Tensor:
    """The gradient of the input, (N, C_in, *size), in lanes, plus a `further` one."""
    kind = native_type(grad.dtype)
    source = to_lanes(grad.to(kind))
    out = empty_lanes((len(grad), plan.shape[1], *size), kind)
    rest = None if further is None else to_lanes(further.to(kind))
    kept = weight if isinstance(weight, Kept) else Kept(plan, weight)
    for part in plan.passes(INPUT_GRADIENT, len(grad), size, kind):
        part.fill(kept)
        part.run(source, out, residual=rest)
    return out if kind == grad.dtype else out.to(grad.dtype)


def weight_gradient(x: Tensor, grad: Tensor, weight: Tensor, plan: Plan) -> Tensor:
    """The gradient of kept weights, zero elsewhere; shape and memory format of `weight`."""
    kind = native_type(x.dtype)
    source, grad = to_lanes(x.to(kind)), to_lanes(grad.to(kind))
    values = torch.zeros(plan.count)
    for part in plan.passes(WEIGHT_GRADIENT, len(x), (x.shape[2], x.shape[3]), kind):
        part.add_gradient(source, grad, values)
    return plan.spread(values, weight)


def both_gradients(
    x: Tensor, grad: Tensor, weight: Tensor, kept: Kept, plan: Plan, further: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`input_gradient` and `weight_gradient`, in one pass where there is one."""
    kind, size = native_type(grad.dtype), (x.shape[2], x.shape[3])
    if not plan.joins(len(x), size, kind):
        to_x = input_gradient(grad, kept, plan, size, further)
        return to_x, weight_gradient(x, grad, weight, plan)
    source, grad = to_lanes(x.to(kind)), to_lanes(grad.to(kind))
    out, values = empty_lanes(tuple(x.shape), kind), torch.zeros(plan.count)
    rest = None if further is None else to_lanes(further.to(kind))
    for part in plan.passes(BOTH_GRADIENTS, len(x), size, kind):
        part.fill(kept)
        part.run_both(grad, out, rest, source, values)
    return out if kind == x.dtype else out.to(x.dtype), plan.spread(values, weight)


def dense_weight_gradient(x: Tensor, grad: Tensor, weight: Tensor, plan: Plan) -> Tensor:
    """The gradient of every weight, pruned ones too, by torch's own kernel."""
    if plan.shape[2:] == (1, 1) and plan.window.stride == (1, 1) and x.shape[2:] == grad.shape[2:]:
        return _matrix_gradient(to_lanes(x), to_lanes(grad)).to(weight.dtype).view_as(weight)
    x, grad = from_lanes(to_lanes(x)), from_lanes(to_lanes(grad))
    w = plan.window
    sides = (list(w.stride), list(w.padding), list(w.dilation))
    kind = weight.to(x.dtype)
    return torch.ops.aten.convolution_backward(
        grad, x, kind, None, *sides, False, [0, 0], 1, (False, True, False)
    )[1].to(weight.dtype)


def _matrix_gradient(x: Tensor, grad: Tensor) -> Tensor:
    rows, cols = (t.permute(1, 2, 3, 0).reshape(t.shape[1], -1) for t in (grad, x))
    return rows @ cols.t()


def element_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan, dense_gradient: bool = True
) -> Tensor:
    """`F.conv2d(x, weight, bias, ...)` of a weight that is zero where its mask is.

    Pruned weights are not read. Sums are float32, in the order of input channels; with bfloat16
    inputs kept weights are rounded to bfloat16 and so is the result, as under autocast.

    Args:
        x: (N, C_in, H, W), float32 or bfloat16, on the CPU.
        weight: float32, (C_out, C_in, kh, kw) or (C_out, C_in) with maps of 1x1 kernels.
        bias: (C_out,) or None.
        plan: of the weight's mask.
        dense_gradient: the weight's gradient is that of the dense convolution (computed by torch,
            at the dense price); False: it is zero where weights are pruned.
    """
    return _ElementConv.apply(x, weight, bias, plan, dense_gradient, False)


def element_conv2d_beside(
    x: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan, dense_gradient: bool = True
) -> tuple[Tensor, Tensor]:
    """The same, and x in lanes for whatever reads it beside: both gradients are summed in one pass.

    Args:
        x: see `element_conv2d`.
        weight: likewise.
        bias: likewise.
        plan: likewise.
        dense_gradient: likewise.
    """
    return _ElementConv.apply(x, weight, bias, plan, dense_gradient, True)


class _ElementConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        plan: Plan,
        dense_gradient: bool,
        beside: bool,
    ) -> Any:
        ctx.plan, ctx.dense_gradient, ctx.size = plan, dense_gradient, (x.shape[2], x.shape[3])
        x = to_lanes(x)  # once: the backward pass reads it too
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        ctx.set_materialize_grads(False)
        ctx.kept = Kept(plan, weight)
        out = products(x, ctx.kept, plan, bias=None if bias is None else bias.float())
        return (out, x.view_as(x)) if beside else out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        (x, weight), plan = ctx.saved_tensors, ctx.plan
        further = grads[1] if len(grads) > 1 else None
        if grads[0] is None:
            return further, None, None, None, None, None
        grad = to_lanes(grads[0])
        to_x = to_weight = to_bias = None
        wanted, kept_only = ctx.needs_input_grad, not ctx.dense_gradient
        if wanted[0] and wanted[1] and kept_only:
            to_x, to_weight = both_gradients(x, grad, weight, ctx.kept, plan, further)
        elif wanted[0]:
            to_x = input_gradient(grad, ctx.kept, plan, ctx.size, further)
        if wanted[1] and to_weight is None:
            compute = weight_gradient if kept_only else dense_weight_gradient
            to_weight = compute(x, grad, weight, plan)
        if ctx.needs_input_grad[2]:
            to_bias = grad.sum((0, 2, 3), dtype=torch.float32)
        return to_x, to_weight, to_bias, None, None, None


__all__ = ["element_conv2d", "element_conv2d_beside", "machine", "products"]
