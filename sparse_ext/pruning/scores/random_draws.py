# SPDX-License-Identifier: MIT
"""Random masks that depend on the seed and the layer's name only, never on global random state."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping

import torch
from torch import Tensor


def draw(seed: int, name: str, purpose: str, step: int, n: int) -> Tensor:
    """A random permutation of n positions that depends on nothing but its arguments."""
    digest = hashlib.blake2b(f"{seed}/{name}/{purpose}/{step}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.randperm(n, generator=generator)


def random_masks(
    sizes: Mapping[str, tuple[int, ...]], kept: Mapping[str, int], seed: int
) -> dict[str, Tensor]:
    """The first `kept[name]` positions of each layer's permutation, as bool on the CPU.

    Args:
        sizes: shape per layer.
        kept: ones per layer.
        seed: equal seeds give nested masks: fewer kept is a subset of more (section 1.4).
    """
    masks = {}
    for name, shape in sizes.items():
        flat = torch.zeros(math.prod(shape), dtype=torch.bool)
        flat[draw(seed, name, "initial", 0, flat.numel())[: kept[name]]] = True
        masks[name] = flat.view(shape)
    return masks


def random_members(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """A random number per weight, the same for both encoders: who survives in an N:M group."""
    return {name: random(shape, seed, name, "members") for name, shape in shapes.items()}


def random(shape: tuple[int, ...], seed: int, name: str, purpose: str, t: int = 0) -> Tensor:
    """Uniform scores that depend on nothing but the arguments: no global state, no rank.

    The same scores at another k give nested masks, and scores of all layers can be ranked together.

    Args:
        shape: shape of the scores (of the weight, or of its groups).
        seed: the run's seed.
        name: fully qualified name of the layer.
        purpose: what the draw is for, e.g. `initial_mask`.
        t: optimizer step.

    Returns:
        float64 on the CPU, in [0, 1); with 53 random bits ties do not occur in practice.
    """
    generator = torch.Generator().manual_seed(hash64(seed, name, purpose, t))
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def hash64(*parts: int | str) -> int:
    """Signed 64-bit hash of numbers and strings, equal on every machine and Python version."""
    text = json.dumps(parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)
