# SPDX-License-Identifier: MIT
"""What only training needs of a sparse layer, as checkpoints hold it: without its zeros.

Of a shadow only the entries of pruned weights are kept, of an optimizer's state those of kept
ones; all others are zero. A running mean of gradients that no update will read is left out.
Numbers are taken apart into planes, all first bytes, all second bytes, and so on: signs and
exponents then lie together, which compresses well (`checkpoint.pack`). Nothing is rounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from solo.errors import CheckpointError

PACKED = "_packed"  # behind the name of a buffer


def pack_(state: dict[str, Any], scores: bool = True) -> None:
    """Replace the shadows and scores of a state dict by their packed forms, in place.

    Args:
        state: of a module, with masks.
        scores: whether scores will be read again; otherwise they come back as zeros.
    """
    for key in [key for key in state if key.endswith(".mask")]:
        prefix, mask = key.removesuffix("mask"), state[key].cpu()
        shadow, score = state.pop(f"{prefix}shadow", None), state.pop(f"{prefix}score", None)
        if shadow is not None:
            state[f"{prefix}shadow{PACKED}"] = _planes(shadow.cpu()[~mask])
        if score is not None:
            values = score.cpu().contiguous().flatten() if scores else torch.empty(0)
            state[f"{prefix}score{PACKED}"] = _planes(values)


def unpack_(state: dict[str, Any], prefix: str, dtype: torch.dtype) -> None:
    """Replace the packed forms of one layer by what they were made of, in place.

    Args:
        state: a state dict.
        prefix: of the layer's keys.
        dtype: of its side buffers.

    Raises:
        CheckpointError: the shadow belongs to another mask.
    """
    for name in ("shadow", "score"):
        packed = state.pop(f"{prefix}{name}{PACKED}", None)
        if packed is None:
            continue
        mask = state[f"{prefix}mask"]
        values = _joined(packed.cpu(), dtype)
        full = torch.zeros(mask.shape, dtype=dtype)
        if name == "shadow":
            pruned = ~mask.cpu()
            if len(values) != pruned.count_nonzero():
                raise CheckpointError(
                    f"'{prefix}mask' prunes {int(pruned.count_nonzero())} weights, the file has "
                    f"last values of {len(values)}: it lost its masks, or they were edited. Take "
                    f"the checkpoint before it."
                )
            full[pruned] = values
        elif len(values):
            full.copy_(values.view(mask.shape))
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
