# SPDX-License-Identifier: MIT
"""Base paths: which input group each output group of a convolution always sees.

A pattern b is a tuple: block (a, b[a]) belongs to the base path, every other one to the
conditional path. Numbers, no modules.
"""

from __future__ import annotations

import torch
from torch import Tensor

Pattern = tuple[int, ...]

# a2 of Table 2 with G = 4, where a1 is the diagonal
_PARTLY_SHARED: dict[int, Pattern] = {50: (0, 1, 0, 1), 75: (0, 1, 2, 0)}


def diagonal(groups: int) -> Pattern:
    """The base path b(a) = a: group a of the outputs reads group a of the inputs."""
    return tuple(range(groups))


def second_path(groups: int, overlap: int) -> Pattern:
    """The base path of a2: it shares `overlap` per cent with the diagonal (CDG, Fig. 5).

    Args:
        groups: G.
        overlap: 0 (inverse diagonal, b(a) = G - 1 - a), 100, and for G = 4 also 50 or 75.
    """
    if overlap == 100:
        return diagonal(groups)
    return _PARTLY_SHARED[overlap] if overlap else diagonal(groups)[::-1]


def base_weight(weight: Tensor, pattern: Pattern) -> Tensor:
    """The blocks of the base path, as the weight of a convolution with groups.

    Args:
        weight: (outputs, inputs, kh, kw); G divides both numbers of channels.
        pattern: b, one input group per output group.

    Returns:
        (outputs, inputs / G, kh, kw).
    """
    rows = weight.chunk(len(pattern), 0)
    blocks = [row.chunk(len(pattern), 1)[b] for row, b in zip(rows, pattern, strict=True)]
    return torch.cat(blocks)


def base_input(x: Tensor, pattern: Pattern) -> Tensor:
    """The input groups (N, C, H, W) in the order in which the base path's output groups take them.

    For the diagonal that is `x` itself.
    """
    if pattern == diagonal(len(pattern)):
        return x
    parts = x.chunk(len(pattern), 1)
    return torch.cat([parts[b] for b in pattern], 1)


def reduction(groups: int, eta: float) -> float:
    """D = 1 / (1/G + (1 - eta)(1 - 1/G)) (CDG, Eq. 13): dense MACs over those used.

    Args:
        groups: G.
        eta: conditional sparsity, the share of closed decisions weighted by MACs.
    """
    return 1 / (1 / groups + (1 - eta) * (1 - 1 / groups))
