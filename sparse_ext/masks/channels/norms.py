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


def _standardised(x: Tensor, width: int, full: int, eps: float) -> Tensor:
    """Over the last dimension, as if zeros made it `full` wide instead of `width`."""
    if torch.onnx.is_in_onnx_export():  # one node that runtimes have a kernel for
        padded = F.layer_norm(F.pad(x, (0, full - width)), (full,), None, None, eps)
        return padded[..., :width]
    share = width / full
    out, mean, rstd = torch.native_layer_norm(x, (width,), None, None, eps)
    variance = share * (rstd.square().reciprocal() - eps + (1 - share) * mean.square())
    scale = (variance + eps).rsqrt()
    result = torch.addcmul((1 - share) * mean * scale, out, scale / rstd)
    return result.to(out.dtype)


def _affine(self: Any, x: Tensor, shape: tuple[int, ...]) -> Tensor:
    if self.weight is None:
        return x
    weight = self.weight.view(shape)
    bias = getattr(self, "bias", None)
    return x * weight if bias is None else torch.addcmul(bias.view(shape), x, weight)


def _layer_norm(self: Any, x: Tensor) -> Tensor:
    """Layer norm over the last dimension, or over channels of a map where `axis` is 1."""
    last = x.ndim - 1
    x = x.movedim(1, last) if self.axis == 1 else x
    width = self.normalized_shape[0]
    out = _affine(self, _standardised(x, width, self.full, self.eps), (-1,))
    return out.movedim(last, 1) if self.axis == 1 else out


def _group_norm(self: Any, x: Tensor) -> Tensor:
    """Group norm with one group: over channels and places of an image."""
    places = int(x[0, 0].numel())
    widths = self.num_channels * places, self.full * places
    out = _standardised(x.flatten(1), *widths, self.eps).view_as(x)
    return _affine(self, out, (-1, *[1] * (x.ndim - 2)))


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
