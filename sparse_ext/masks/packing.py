# SPDX-License-Identifier: MIT
"""What only training needs of a sparse layer, as checkpoints hold it: without its zeros.

Of a shadow only the entries of pruned weights are kept, of an optimizer's state those of kept
ones, in logical order; all others are zero. A running mean of gradients that no update will read
is left out. For files that are to be compressed (`checkpoint.pack`) numbers are taken apart into
planes, all first bytes, all second bytes, and so on: signs and exponents then lie together.
Nothing is rounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from solo.errors import CheckpointError

PACKED = "_packed"  # behind the name of a buffer
_FLOATS = {4: torch.float32, 8: torch.float64}  # by bytes; others are not taken apart


def pack_(state: dict[str, Any], scores: bool = True, planes: bool = False) -> None:
    """Replace the shadows and scores of a state dict by their packed forms, in place.

    Args:
        state: of a module, with masks.
        scores: whether scores will be read again; otherwise they come back as zeros.
        planes: take numbers apart.
    """
    for key in [key for key in state if key.endswith(".mask")]:
        prefix = key.removesuffix("mask")
        shadow, score = state.pop(f"{prefix}shadow", None), state.pop(f"{prefix}score", None)
        if shadow is not None:
            state[f"{prefix}shadow{PACKED}"] = _apart(shadow.masked_select(~state[key]), planes)
        if score is not None:
            kept = score.flatten() if scores else score.new_empty(0)
            state[f"{prefix}score{PACKED}"] = _apart(kept, planes)


def unpack_(state: dict[str, Any], prefix: str) -> None:
    """Replace the packed forms of one layer by what they were made of, in place.

    Args:
        state: a state dict.
        prefix: of the layer's keys.

    Raises:
        CheckpointError: the shadow belongs to another mask.
    """
    for name in ("shadow", "score"):
        packed = state.pop(f"{prefix}{name}{PACKED}", None)
        if packed is None:
            continue
        mask = state[f"{prefix}mask"].to(packed.device)
        held = ~mask if name == "shadow" else torch.ones_like(mask)
        count = int(held.count_nonzero())
        values = _joined(packed, count)
        if len(values) not in (count, 0 if name == "score" else count):
            raise CheckpointError(
                f"'{prefix}{name}' has values of {len(values)} weights, not of {count}: the file "
                f"has lost its masks, or they were edited. Take the checkpoint before it."
            )
        full = values.new_zeros(mask.shape)
        state[prefix + name] = full.masked_scatter_(held, values) if len(values) else full


def pack_states_(
    states: dict[Any, Any], masks: Mapping[Any, Tensor], planes: bool = False
) -> dict[Any, list[str]]:
    """Keep of an optimizer's state only the entries of kept weights, in place; others are zero.

    Args:
        states: of the optimizer, by the index of a parameter.
        masks: of those parameters that have one.
        planes: take numbers apart.

    Returns:
        names of the tensors that were packed, by the same index.
    """
    packed: dict[Any, list[str]] = {}
    for index, mask in masks.items():
        own = dict(states.get(index, {}))
        packed[index] = [
            name
            for name, value in own.items()
            if isinstance(value, Tensor) and value.shape == mask.shape
        ]
        for name in packed[index]:
            own[name] = _apart(own[name].masked_select(mask.to(own[name].device)), planes)
        states[index] = own
    return packed


def unpack_states_(
    states: dict[Any, Any], masks: Mapping[Any, Tensor], packed: Mapping[Any, list[str]]
) -> None:
    """Inverse of `pack_states_`, given what it returned."""
    for index, names in packed.items():
        for name in names:
            mask = masks[index].to(states[index][name].device)
            values = _joined(states[index][name], int(mask.count_nonzero()))
            states[index][name] = values.new_zeros(mask.shape).masked_scatter_(mask, values)


def _apart(values: Tensor, planes: bool) -> Tensor:
    """(n,) numbers, as (n * size,) bytes, plane by plane, where `planes` asks for it."""
    if not planes or values.dtype not in _FLOATS.values():
        return values
    return values.view(torch.uint8).view(-1, values.element_size()).t().reshape(-1)


def _joined(values: Tensor, count: int) -> Tensor:
    """Inverse of `_apart` for so many numbers."""
    size = len(values) // max(1, count)
    if values.dtype != torch.uint8 or size not in _FLOATS:
        return values.float() if values.dtype == torch.uint8 else values
    return values.view(size, -1).t().contiguous().view(-1).view(_FLOATS[size])
