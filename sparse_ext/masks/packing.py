# SPDX-License-Identifier: MIT
"""What only training needs of a sparse layer, in a form that compresses well (`checkpoint.pack`).

Of a shadow only the entries of pruned weights are kept, all others are zero. Numbers are taken
apart into planes, all first bytes, all second bytes, and so on: signs and exponents then lie
together. Nothing is rounded.
"""

from __future__ import annotations

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


def _planes(values: Tensor) -> Tensor:
    """(n,) numbers as (n * size,) bytes, plane by plane."""
    return values.view(torch.uint8).view(-1, values.element_size()).t().reshape(-1)


def _joined(planes: Tensor, dtype: torch.dtype) -> Tensor:
    """Inverse of `_planes`."""
    size = torch.empty(0, dtype=dtype).element_size()
    return planes.view(size, -1).t().contiguous().view(-1).view(dtype)
