# SPDX-License-Identifier: MIT
"""The widths of a slimmed network: read from its weights, given to a full one before it loads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from solo.errors import CheckpointError
from sparse_ext.masks.channels.tracing import LAYERS, NORMS

MARK = "slim"  # a buffer of a slimmed network: its widths are those of its weights
LIKE_WEIGHT = ("weight", "mask", "shadow", "score")
PER_CHANNEL = ("weight", "bias", "running_mean", "running_var")


def declare(layer: Any) -> None:
    """Write the weight's shape into a layer's attributes."""
    outputs, columns = layer.weight.shape[:2]
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = outputs, columns
    else:
        layer.out_channels, layer.in_channels = outputs, columns


def resize_(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give the layers of `net` the widths that a slimmed network's `state` has, in place.

    Raises:
        CheckpointError: a shape that slimming cannot have made of the present one.
    """
    for name, module in net.named_modules():
        if not isinstance(module, LAYERS + NORMS):
            continue
        for key in {*LIKE_WEIGHT, *PER_CHANNEL}:
            tensor, wanted = getattr(module, key, None), state.get(f"{name}.{key}")
            if tensor is None or wanted is None or tensor.shape == wanted.shape:
                continue
            if tensor.ndim != wanted.ndim or any(
                w > t or (w != t and dim > 1)
                for dim, (w, t) in enumerate(zip(wanted.shape, tensor.shape, strict=True))
            ):
                raise CheckpointError(
                    f"'{name}.{key}' has shape {tuple(wanted.shape)} in the slim file and "
                    f"{tuple(tensor.shape)} in the full network: it was slimmed from another "
                    f"architecture. Set backbone.name and backbone.kwargs as in training."
                )
            _resize_one(module, key, tensor, wanted.shape)
        _declare_all(module)
    net.register_buffer(MARK, torch.tensor(True))


def _resize_one(module: nn.Module, key: str, tensor: Tensor, shape: torch.Size) -> None:
    new = tensor.detach()[tuple(slice(n) for n in shape)].clone(memory_format=torch.preserve_format)
    if isinstance(tensor, nn.Parameter):
        new = nn.Parameter(new, requires_grad=tensor.requires_grad)
    setattr(module, key, new)


def _declare_all(module: Any) -> None:
    if isinstance(module, LAYERS):
        declare(module)
        return
    known = [t for t in (module.weight, module.running_mean) if t is not None]
    module.num_features = known[0].numel() if known else module.num_features
