# SPDX-License-Identifier: MIT
"""What methods of constant sparsity share: no ramp, and perhaps new masks in every epoch."""

from __future__ import annotations

import math

from torch.optim import Optimizer

from sparse_ext.pruning.pruner import Pruner


class Constant(Pruner):
    """A method whose sparsity is the final one from the first step on."""

    def set_up(self) -> None:
        """The sparsity at the start is the final one."""
        self.begins = list(self.finals)


class EpochMasks(Constant):
    """A method that makes the masks of `initial_masks` anew at the start of every epoch.

    Attributes:
        masked_epoch: the epoch (0-based) whose masks are in place.
    """

    saved = ("masked_epoch",)

    def set_up(self) -> None:
        """The initial masks are those of the first epoch."""
        super().set_up()
        self.masked_epoch = 0

    def begin_batch(self, epoch: int, optimizer: Optimizer | None = None) -> bool:
        """Make new masks before the first batch of an epoch."""
        if self.masked_epoch >= epoch:
            return False
        self.masked_epoch = epoch
        pairs = zip(self.encoders, self.finals, strict=True)
        self.apply([self.initial_masks(*pair) for pair in pairs], optimizer)
        return True


def fraction_of(fraction: float, steps: int) -> int:
    """The step at which that fraction of a run is over."""
    return math.floor(fraction * steps + 0.5)
