# SPDX-License-Identifier: MIT
"""Masks must be equal on all ranks: they are computed everywhere and compared."""

from __future__ import annotations

import torch
from torch import distributed as dist

from solo.errors import SoloError
from solo.utils.ranks import device, world_size


class MaskDriftError(SoloError, RuntimeError):
    """Ranks hold different masks or weights."""


def check_equal(checksum: int, what: str) -> None:
    """Compare a signed 64-bit number between ranks.

    Raises:
        MaskDriftError: on every rank, if any two differ.
    """
    if world_size() == 1:
        return
    mine = torch.tensor([checksum], dtype=torch.int64, device=device())
    everyone = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(everyone, mine)
    values = torch.cat(everyone).tolist()
    if len(set(values)) > 1:
        raise MaskDriftError(
            f"{what} differ between ranks (checksums {values}). Every rank must see the same "
            f"averaged gradients and weights: do not call the module inside DDP directly, and do "
            f"not change weights or masks on one rank only."
        )
