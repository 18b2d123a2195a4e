# SPDX-License-Identifier: MIT
"""Norms over channels of which some are gone: the statistics are those of all.

Channels that were zero and have been removed still count: with n of N channels left, a = n / N,
mean m and variance v over those that are left, the full network's mean is a m and its variance
a (v + (1 - a) m^2). `correct` gives a norm a subclass that computes with these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparse_ext.masks.channels.subclasses import subclass


class _NormOverAll(torch.autograd.Function):
    """Layer norm over the last dimension, as if zeros made it `full` wide.

    With r, the standard deviation over the channels that are left by that over all, and c, the
    difference of the two means by the latter, it is r LN(x) + c weight + (1 - r) bias: a native
    norm and a product of rank two. The gradient is a native norm's, too, but that sums over
    channels are divided by the number of all.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, full: int, eps: float) -> Tensor:
        width = x.shape[-1]
        share, x = width / full, x.contiguous()
        out, mean, rstd = torch.native_layer_norm(x, (width,), weight, bias, eps)
        variance = share * (rstd.square().reciprocal() - eps + (1 - share) * mean.square())
        scale = (variance + eps).rsqrt()
        ratio, offset = scale / rstd, (1 - share) * mean * scale
        columns = torch.cat((offset, 1 - ratio), -1).view(-1, 2)
        out.mul_(ratio).view(-1, width).addmm_(columns, torch.stack((weight, bias)))
        ctx.share = share
        ctx.save_for_backward(x, weight, bias, share * mean, scale)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, scale = ctx.saved_tensors
        grad, share = grad.contiguous(), ctx.share
        of_x, of_weight, of_bias = torch.ops.aten.native_layer_norm_backward(
            grad, x, weight.shape, mean, scale, share * weight, bias, [True, True, True]
        )
        of_x.addcmul_(grad * ((1 - share) * weight), scale)
        return of_x, of_weight, of_bias, None, None


def _norm_over_all(x: Tensor, weight: Tensor, bias: Tensor, full: int, eps: float) -> Tensor:
    if torch.onnx.is_in_onnx_export():  # one node that runtimes have a kernel for
        width = x.shape[-1]
        x, weight, bias = (F.pad(t, (0, full - width)) for t in (x, weight, bias))
        return F.layer_norm(x, (full,), weight, bias, eps)[..., :width]
    precise = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):  # products as precise as the norm
        out = _NormOverAll.apply(x.to(precise), weight.to(precise), bias.to(precise), full, eps)
    return out.to(x.dtype)


def _layer_norm(self: Any, x: Tensor) -> Tensor:
    """Layer norm over the last dimension, or over channels of a map where `axis` is 1."""
    last = x.ndim - 1
    x = x.movedim(1, last) if self.axis == 1 else x
    weight = x.new_ones(self.normalized_shape) if self.weight is None else self.weight
    bias = getattr(self, "bias", None)
    bias = torch.zeros_like(weight) if bias is None else bias
    out = _norm_over_all(x, weight, bias, self.full, self.eps)
    return out.movedim(last, 1) if self.axis == 1 else out


def _group_norm(self: Any, x: Tensor) -> Tensor:
    """Group norm with one group: over channels and places of an image."""
    flat, places = x.flatten(1), x[0, 0].numel()
    one = x.new_ones(flat.shape[1])
    out = _norm_over_all(flat, one, torch.zeros_like(one), self.full * places, self.eps).view_as(x)
    if self.weight is None:
        return out
    shape = (-1, *[1] * (x.ndim - 2))
    return torch.addcmul(self.bias.view(shape), out, self.weight.view(shape))


def _response_norm(self: Any, x: Tensor) -> Tensor:
    """Global response normalisation (ConvNeXt V2, Woo et al. 2023): the mean is that of all."""
    size = x.norm(p=2, dim=self.spatial_dim, keepdim=True)
    mean = size.sum(dim=self.channel_dim, keepdim=True) / self.full
    scaled = x * (size / (mean + self.eps))
    weight, bias = self.weight.view(self.wb_shape), self.bias.view(self.wb_shape)
    return x + torch.addcmul(bias, weight, scaled)


def correctable(module: nn.Module | None) -> str:
    """What kind of norm a module is, empty if its statistics cannot be corrected."""
    if isinstance(module, nn.LayerNorm):
        return "layer"
    if isinstance(module, nn.GroupNorm):
        return "group"
    return "response" if type(module).__name__.endswith("GlobalResponseNorm") else ""


def correct(module: nn.Module, about: Mapping[str, int]) -> None:
    """Give a norm the statistics of the full width, in place.

    Args:
        module: a layer norm, a group norm with one group, or global response normalisation.
        about: `full`, channels of the full network; `axis`, where a layer norm finds them.
    """
    forwards: dict[str, Callable] = {
        "layer": _layer_norm,
        "group": _group_norm,
        "response": _response_norm,
    }
    if not hasattr(module, "full"):
        module.__class__ = subclass(type(module), forwards[correctable(module)])
        for name, value in about.items():
            setattr(module, name, value)
