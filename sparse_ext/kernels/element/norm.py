# SPDX-License-Identifier: MIT
"""Batch norm, a residual sum and ReLU in one pass over activations in lanes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from sparse_ext.kernels.element.lanes import empty_lanes, in_lanes, stays, to_lanes
from sparse_ext.kernels.element.native import library


class LaneBatchNorm2d(nn.BatchNorm2d):
    """A batch norm that leaves activations in lanes, where they come so; else torch's own.

    Attributes:
        rectifies: whether a `LaneReLU` follows at once, so that its work is done here.
    """

    rectifies = False

    def forward(self, input: Tensor) -> Tensor:
        if not computable(self, input):
            return super().forward(input)
        rectifies = self.rectifies and not self._forward_hooks  # a hook is to see its own output
        out = norm(input, self, relu=rectifies)
        if rectifies:
            out._rectified = out._version  # type: ignore[attr-defined]
        return out


class LaneReLU(nn.ReLU):
    """A ReLU that has nothing to do where the batch norm before it has done it."""

    def forward(self, input: Tensor) -> Tensor:
        done = getattr(input, "_rectified", None)
        return input if done is not None and done == input._version else super().forward(input)


def computable(bn: nn.BatchNorm2d, x: Tensor) -> bool:
    """Whether `norm` has a pass of its own for this input."""
    if not stays(x) or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if bn.weight is not None and bn.weight.dtype != torch.float32:
        return False
    if x.shape[1] != bn.num_features:
        return False
    if bn.training or bn.running_mean is None:
        return x.shape[0] * x.shape[2] * x.shape[3] > 1
    return not (torch.is_grad_enabled() and _wants_gradients(bn, x))


def _wants_gradients(bn: nn.BatchNorm2d, x: Tensor) -> bool:
    return x.requires_grad or any(p.requires_grad for p in bn.parameters())


def norm(
    x: Tensor, bn: nn.BatchNorm2d, residual: Tensor | None = None, relu: bool = False
) -> Tensor:
    """relu(bn(x) + residual), as torch computes it, in one pass where x lies in lanes."""
    if not computable(bn, x) or (residual is not None and residual.dtype != x.dtype):
        out = nn.BatchNorm2d.forward(bn, x)
        out = out if residual is None else out + residual
        return F.relu(out) if relu else out
    if bn.training or bn.running_mean is None:
        return _BatchNorm.apply(x, residual, bn.weight, bn.bias, bn, relu)
    with torch.no_grad():
        return _affine(x, residual, *folded(bn), relu)


def folded(bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and shift of each channel in eval mode, (C,) each, float32."""
    scale = (bn.running_var.float() + bn.eps).rsqrt()  # type: ignore[union-attr]
    if bn.weight is not None:
        scale = scale * bn.weight.detach()
    shift = -bn.running_mean.float() * scale  # type: ignore[union-attr, operator]
    return scale, shift if bn.bias is None else shift + bn.bias.detach()


def _affine(x: Tensor, residual: Tensor | None, scale: Tensor, shift: Tensor, relu: bool) -> Tensor:
    out, rest = empty_lanes(tuple(x.shape), x.dtype), _lanes(residual)
    library().element_affine(
        _half(x), x.data_ptr(), _ptr(rest), scale.data_ptr(), shift.data_ptr(), *_sides(x),
        int(relu), out.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return out


def _running(bn: nn.BatchNorm2d) -> tuple[int | None, int | None, float]:
    """Pointers to the running statistics, which this batch moves, and by how much."""
    if not (bn.training and bn.track_running_stats and bn.running_mean is not None):
        return None, None, 0.0
    momentum = bn.momentum
    if bn.num_batches_tracked is not None:
        bn.num_batches_tracked.add_(1)
        if momentum is None:
            momentum = 1.0 / float(bn.num_batches_tracked)
    mean, var = bn.running_mean, bn.running_var
    torch.autograd.graph.increment_version((mean, var))  # type: ignore[arg-type]
    return mean.data_ptr(), var.data_ptr(), float(momentum or 0.0)  # type: ignore[union-attr]


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        bn: nn.BatchNorm2d,
        relu: bool,
    ) -> Tensor:
        out, rest = empty_lanes(tuple(x.shape), x.dtype), _lanes(residual)
        stats = torch.empty(4, x.shape[1])
        mean, var, momentum = _running(bn)
        library().element_norm(
            _half(x), x.data_ptr(), _ptr(rest), _ptr(weight), _ptr(bias), bn.eps, *_sides(x),
            int(relu), out.data_ptr(), stats.data_ptr(), mean, var, momentum,
            torch.get_num_threads(),
        )  # fmt: skip
        ctx.relu = relu  # its sign is that of the output, or else that of scale * x + shift
        ctx.save_for_backward(x, stats, out if relu and residual is not None else None)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, stats, out = ctx.saved_tensors
        grad = to_lanes(grads[0])
        to_x = empty_lanes(tuple(x.shape), x.dtype)
        to_rest = empty_lanes(tuple(x.shape), x.dtype) if ctx.needs_input_grad[1] else None
        sums = torch.empty(2, x.shape[1])
        library().element_norm_backward(
            _half(x), grad.data_ptr(), _ptr(out), x.data_ptr(), stats.data_ptr(), *_sides(x),
            int(ctx.relu), to_x.data_ptr(), _ptr(to_rest), sums[0].data_ptr(), sums[1].data_ptr(),
            torch.get_num_threads(),
        )  # fmt: skip
        to_weight, to_bias = (
            total if wanted else None
            for total, wanted in zip(sums, ctx.needs_input_grad[2:4], strict=True)
        )
        return to_x, to_rest, to_weight, to_bias, None, None


def _lanes(x: Tensor | None) -> Tensor | None:
    return x if x is None or in_lanes(x) else to_lanes(x)


def _half(x: Tensor) -> int:
    return int(x.dtype == torch.bfloat16)


def _sides(x: Tensor) -> tuple[int, int]:
    return x.shape[1], x.numel() // x.shape[1]


def _ptr(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()
