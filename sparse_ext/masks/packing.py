# SPDX-License-Identifier: MIT
"""What only training needs of a sparse layer, in a form that compresses well (`checkpoint.pack`).

Of a shadow only the entries of pruned weights are kept, all others are zero. Numbers are taken
apart into planes, all first bytes, all second bytes, and so on: signs and exponents then lie
together. Nothing is rounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

PACKED = "_packed"  # behind the name of a buffer


def pack_(state: dict[str, Any]) -> None:
    """Replace the shadows and scores of a state dict by their packed forms, in place."""
    for key in [key for key in state if key.endswith(".mask")]:
        prefix, mask = key.removesuffix("mask"), state[key].cpu()
        shadow, score = state.pop(f"{prefix}shadow", None), state.pop(f"{prefix}score", None)
        if shadow is not None:
            state[f"{prefix}shadow{PACKED}"] = _planes(shadow.cpu()[~mask])
        if score is not None:
            state[f"{prefix}score{PACKED}"] = _planes(score.cpu().contiguous().flatten())


def unpack_(state: dict[str, Any], prefix: str, dtype: torch.dtype) -> None:
    """Replace the packed forms of one layer by what they were made of, in place.

    Args:
        state: a state dict.
        prefix: of the layer's keys.
        dtype: of its side buffers.
    """
    for name in ("shadow", "score"):
        packed = state.pop(f"{prefix}{name}{PACKED}", None)
        if packed is None:
            continue
        mask = state[f"{prefix}mask"]
        values = _joined(packed.cpu(), dtype)
        if name == "score":
            state[prefix + name] = values.view(mask.shape)
        else:
            full = torch.zeros(mask.shape, dtype=dtype)
            full[~mask.cpu()] = values
            state[prefix + name] = full


def pack_states_(states: dict[Any, Any], masks: Mapping[Any, Tensor]) -> dict[Any, list[str]]:
    """Keep of an optimizer's state only the entries of kept weights, in place; others are zero.

    Args:
        states: of the optimizer, by the index of a parameter.
        masks: of those parameters that have one.

    Returns:
        names of the tensors that were packed, by the same index.
    """
    packed: dict[Any, list[str]] = {}
    for index, mask in masks.items():
        own = states.get(index, {})
        wide = {n: v for n, v in own.items() if isinstance(v, Tensor) and v.shape == mask.shape}
        names = [name for name, value in wide.items() if value.dtype in _FLOATS.values()]
        states[index] = {**own, **{n: _planes(own[n].cpu()[mask.cpu()]) for n in names}}
        packed[index] = names
    return packed


def unpack_states_(
    states: dict[Any, Any], masks: Mapping[Any, Tensor], packed: Mapping[Any, list[str]]
) -> None:
    """Inverse of `pack_states_`, given what it returned."""
    for index, names in packed.items():
        mask = masks[index].cpu()
        for name in names:
            planes = states[index][name].cpu()
            size = planes.numel() // max(1, int(mask.count_nonzero()))
            full = torch.zeros_like(mask, dtype=_FLOATS.get(size, torch.float32))
            full[mask] = _joined(planes, full.dtype)
            states[index][name] = full


_FLOATS = {4: torch.float32, 8: torch.float64}  # of optimizer states; others are left as they are


def _planes(values: Tensor) -> Tensor:
    """(n,) numbers as (n * size,) bytes, plane by plane."""
    return values.view(torch.uint8).view(-1, values.element_size()).t().reshape(-1)


def _joined(planes: Tensor, dtype: torch.dtype) -> Tensor:
    """Inverse of `_planes`."""
    size = torch.empty(0, dtype=dtype).element_size()
    return planes.view(size, -1).t().contiguous().view(-1).view(dtype)
