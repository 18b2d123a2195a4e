# SPDX-License-Identifier: MIT
"""Seeds that are equal on every machine, for every random generator in use."""

from __future__ import annotations

import random

import numpy as np
import torch

_BITS = (1 << 64) - 1


def mix(*numbers: int) -> int:
    """A 63-bit seed from any integers (splitmix64 over each in turn); all of them matter."""
    state = 0
    for number in numbers:
        state = (state ^ (number & _BITS)) + 0x9E3779B97F4A7C15 & _BITS
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & _BITS
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & _BITS
        state ^= state >> 31
    return state >> 1


def seed_all(seed: int) -> None:
    """Seed `random` (the PIL blur), numpy (timm's RandAugment) and torch's CPU generator."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)
