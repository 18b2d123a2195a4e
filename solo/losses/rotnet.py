# SPDX-License-Identifier: MIT
"""RotNet (Gidaris et al. 2018): turned images, and which quarter turn each has had."""

from __future__ import annotations

import torch
from torch import Tensor

from solo.errors import ConfigError


def rotate(X: Tensor, turns: Tensor) -> Tensor:
    """Turn each image by its number of quarter turns, counter-clockwise as `torch.rot90`.

    Args:
        X: square images, (N, C, S, S).
        turns: 0, 1, 2 or 3 per image, (N,).

    Raises:
        ConfigError: the images are not square, so that turned ones would have another shape.
    """
    if X.size(-1) != X.size(-2):
        raise ConfigError(f"rotations need square images, got {X.size(-2)} x {X.size(-1)} pixels")
    turns = turns.view(-1, 1, 1, 1)
    X = torch.where(turns >= 2, X.flip(-2, -1), X)
    return torch.where(turns % 2 == 1, torch.rot90(X, 1, (-2, -1)), X)


def balanced_turns(n: int, device: torch.device | None = None) -> Tensor:
    """A random number of quarter turns for each of `n` images; all four equally often (+-1)."""
    return torch.randperm(n, device=device) % 4
