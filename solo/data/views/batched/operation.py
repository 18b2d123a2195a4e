# SPDX-License-Identifier: MIT
"""What all operations on batches share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

TOP = 255.0


class Operation(nn.Module):
    """One step of a pipeline, on all images at once.

    Attributes:
        draws: how many uniform random numbers an image needs; `forward(x, u)` gets x
            (N, 3, H, W) float whole levels and u (N, draws).
    """

    draws: int = 1


def levels(x: Tensor) -> Tensor:
    """Nearest whole levels between 0 and 255, in place."""
    return x.round_().clamp_(0, TOP)


def apply_to(chosen: Tensor, changed: Tensor, x: Tensor) -> Tensor:
    """`changed` where an image is chosen, `x` elsewhere.

    Not `torch.where`, which is ten times slower on the CPU; exact for these weights.

    Args:
        chosen: (N,) bool.
        changed: (N, 3 or 1, H, W).
        x: (N, 3, H, W).
    """
    return torch.lerp(x, changed, chosen.to(x.dtype)[:, None, None, None])


def may_look(x: Tensor) -> bool:
    """Whether a choice by value costs nothing: on the CPU, where no queue must be waited for.

    `torch.compile` would have to leave the graph for it.
    """
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def change_chosen(
    chosen: Tensor, change: Callable[..., Tensor], x: Tensor, *parameters: Tensor
) -> Tensor:
    """`change(x, *parameters)` for the chosen images, the others as they are.

    The work is done for the chosen images only where `may_look`, else for all.

    Args:
        chosen: (N,) bool.
        change: treats every image by itself.
        x: (N, 3, H, W).
        parameters: of `change`, one row per image.
    """
    if not may_look(x):
        return apply_to(chosen, change(x, *parameters), x)
    rows = chosen.nonzero()[:, 0]
    if len(rows) == len(x):
        return change(x, *parameters)
    if len(rows) == 0:
        return x
    changed = change(*(part.index_select(0, rows) for part in (x, *parameters)))
    return x.index_copy(0, rows, changed)


def between(u: Tensor, low: float, high: float) -> Tensor:
    """Uniform numbers on [0, 1) moved to [low, high)."""
    return low + (high - low) * u


def whole_below(u: Tensor, n: Tensor | int) -> Tensor:
    """Uniform whole numbers 0, ..., n - 1 (as floats) from uniform numbers on [0, 1)."""
    scaled = (u * n).floor()  # rounding may reach n
    return torch.minimum(scaled, n - 1) if isinstance(n, Tensor) else scaled.clamp(max=n - 1)
