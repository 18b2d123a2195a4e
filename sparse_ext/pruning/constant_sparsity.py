# SPDX-License-Identifier: MIT
"""What the rivals of SyncCP share: constant sparsity, swapping by the gradient of the step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer

from sparse_ext.pruning.pruner import Pruner


class Constant(Pruner):
    """Final sparsity from the start; masks change at most by `due`, `online_masks`, ..."""

    def plan(self) -> None:
        """There is no ramp."""
        self.begins = list(self.finals)
        self.aims = list(self.finals)


class EpochMasks(Constant):
    """The masks of `initial_masks`, made anew at the start of every epoch."""

    def plan(self) -> None:
        """The first epoch's masks are the initial ones."""
        super().plan()
        self.masked_epoch = 0

    def begin_batch(self, epoch: int, optimizer: Optimizer | None = None) -> bool:
        """New masks once an epoch."""
        if self.masked_epoch >= epoch:
            return False
        self.masked_epoch = epoch
        pairs = zip(self.encoders, self.finals, strict=True)
        self._apply([self.initial_masks(*pair) for pair in pairs], optimizer)
        return True

    def extra_state(self) -> dict[str, Any]:
        """The epoch whose masks are in place."""
        return {"masked_epoch": self.masked_epoch}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take over `extra_state`."""
        self.masked_epoch = state["masked_epoch"]


def fraction_of(fraction: float, steps: int) -> int:
    """The step at which that fraction of a run is over."""
    return math.floor(fraction * steps + 0.5)
