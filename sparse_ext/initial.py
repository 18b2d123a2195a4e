# SPDX-License-Identifier: MIT
"""Random masks that depend on the seed and the layer's name only, never on global random state."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def draw(seed: int, name: str, purpose: str, step: int, n: int) -> Tensor:
    """A random permutation of n positions that depends on nothing but its arguments."""
    digest = hashlib.blake2b(f"{seed}/{name}/{purpose}/{step}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.randperm(n, generator=generator)


def random_masks(
    old: Mapping[str, Tensor], kept: Mapping[str, int], seed: int
) -> dict[str, Tensor]:
    """The first `kept[name]` positions of each layer's permutation.

    Args:
        old: present masks; the new ones have their shapes, devices and memory formats.
        kept: ones per layer.
        seed: equal seeds give nested masks: fewer kept is a subset of more (section 1.4).
    """
    masks = {}
    for name, mask in old.items():
        flat = torch.zeros(mask.numel(), dtype=torch.bool)
        flat[draw(seed, name, "initial", 0, mask.numel())[: kept[name]]] = True
        masks[name] = torch.empty_like(mask).copy_(flat.view(mask.shape))
    return masks
