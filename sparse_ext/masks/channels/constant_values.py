# SPDX-License-Identifier: MIT
"""Channels that carry one value for every image and position, and what that value is.

A channel whose weights are all zero is not gone: batch norm makes a constant of it, an activation
another one, and the next layer reads that. In eval mode the constant is
gamma (0 - running_mean) / sqrt(running_var + eps) + beta, in train mode it is beta, because a
constant channel has no variance in any batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparse_ext.masks.channels.tracing import Channels, Step
from sparse_ext.masks.masked_layers import Masked

AGREE = 1e-6  # relative difference of the two modes' values that counts as none


def used(layer: Any, train: bool) -> Tensor:
    """Which inputs an output reads: bool (outputs, columns).

    A weight that is zero reads nothing; while training continues only its mask promises that it
    stays zero.
    """
    weight = layer.weight.detach()
    if not train:
        alive = weight != 0
    elif isinstance(layer, Masked):
        alive = layer.mask
    else:
        alive = torch.ones_like(weight, dtype=torch.bool)
    return alive.reshape(*alive.shape[:2], -1).any(2)


def inputs(channels: Channels, net: nn.Module, train: bool = False) -> dict[str, Tensor]:
    """What the layers of `net` read: the value of each input channel, NaN where it varies.

    Args:
        channels: of a network with the same modules.
        net: the network whose weights count.
        train: in train mode, and as long as training goes on; a channel is then constant only
            where eval mode sees the same value.

    Returns:
        float64 on the CPU, one entry per channel, by the reading layer's name.
    """
    values = _inputs(channels, net, train)
    if not train:
        return values
    later = _inputs(channels, net, train, statistics=True)
    for name, value in values.items():
        off = (value - later[name]).abs() > AGREE * (1 + value.abs())
        values[name] = value.masked_fill(off | later[name].isnan(), torch.nan)
    return values


@torch.no_grad()
def _inputs(
    channels: Channels, net: nn.Module, train: bool, statistics: bool | None = None
) -> dict[str, Tensor]:
    """As `inputs`, in one mode; `statistics`: batch norms use their running ones."""
    statistics = not train if statistics is None else statistics
    read: dict[str, Tensor] = {}
    for part in channels.steps:
        values: list[Tensor | None] = []
        for step in part:
            taken = [values[i] for i in step.inputs]
            module: Any = net.get_submodule(step.name) if step.name else None
            if step.kind == "layer":
                space = channels.reads[step.name]
                known = taken[0]
                if known is None:
                    known = torch.full((space.size or module.weight.shape[1],), torch.nan).double()
                read[step.name] = known
                columns = known.repeat_interleave(module.weight.shape[1] // known.numel())
                values.append(_layer(module, columns, train))
            elif step.kind == "norm" and taken[0] is not None:
                values.append(_norm(module, taken[0], statistics))
            else:
                values.append(_other(step, taken, statistics))
    return read


def _layer(layer: Any, known: Tensor, train: bool) -> Tensor:
    weight = layer.weight.detach().cpu().double()
    weight = weight.reshape(*weight.shape[:2], -1).sum(2)
    alive = used(layer, train).cpu()
    blocks = known.isnan()
    if isinstance(layer, nn.Conv2d) and _has_border(layer):
        blocks = blocks | (known != 0)  # a constant is cut off by the padding's zeros
    result = weight @ known.nan_to_num(0.0)
    if layer.bias is not None:
        result += layer.bias.detach().cpu().double()
    return result.masked_fill((alive & blocks).any(1), torch.nan)


def _has_border(conv: nn.Conv2d) -> bool:
    nothing = conv.padding == "valid" or (
        not isinstance(conv.padding, str) and not any(conv.padding)
    )
    return conv.padding_mode == "zeros" and not nothing


def _norm(norm: Any, known: Tensor, statistics: bool) -> Tensor:
    scale = known.new_ones(known.shape) if norm.weight is None else norm.weight.cpu().double()
    shift = known.new_zeros(known.shape) if norm.bias is None else norm.bias.cpu().double()
    if not statistics or norm.running_mean is None:
        return torch.where(known.isnan(), known, shift)
    mean, variance = norm.running_mean.cpu().double(), norm.running_var.cpu().double()
    return (known - mean) / (variance + norm.eps).sqrt() * scale + shift


def _other(step: Step, taken: list[Tensor | None], statistics: bool) -> Tensor | None:
    if step.kind in ("input", "opaque") or any(value is None for value in taken):
        return None
    first: Tensor = taken[0]  # type: ignore[assignment]
    if step.kind == "add":
        return first + taken[1]  # type: ignore[operator]
    if step.kind == "pool" or (step.kind == "drop" and not statistics):
        return first.masked_fill(first != 0, torch.nan)
    if step.kind == "drop":
        return first
    return step.apply(first.clone().unsqueeze(0)).squeeze(0)
