# SPDX-License-Identifier: MIT
"""SD-MoCo, SD-BYOL, SD-Barlow: the sparse-dense baselines of SyncCP.

One encoder of a pair is pruned at a fixed sparsity, the other one is dense; at the start of every
epoch the mask is chosen anew by magnitude among all weights. Pruned weights rest: they get no
gradient and no weight decay, keep their value and may be chosen again (it lies in `shadow`). With
one encoder, view 0 goes through the mask and the others through the dense network, whose gradient
keeps pruned weights moving; evaluation sees the pruned network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer

from solo.errors import ConfigError
from sparse_ext.constant import Constant
from sparse_ext.encoder import Encoder
from sparse_ext.functional import Branches, make_functional

FIRST_VIEW = Branches(first=True, others=False, evaluation=True)


class SD(Constant):
    """A new magnitude mask every epoch; the stored weights of a pair are zero where pruned."""

    regrow_init = "latent"

    @classmethod
    def keeps_latents(cls, config: Any, shared: bool) -> bool:
        """Pruned weights of a pair rest in shadows; one encoder stores them alive."""
        return not shared

    @classmethod
    def prepare(cls, config: Any, module: Any, encoders: list[Encoder]) -> list[Encoder]:
        """With one encoder both branches share their weights."""
        if len(encoders) > 1:
            return encoders
        if config.reverse:
            raise ConfigError(
                f"sparse.reverse=true prunes the momentum encoder, and {type(module).__name__} "
                f"has none. Leave sparse.reverse out."
            )
        return [make_functional(encoders[0], FIRST_VIEW)]

    @property
    def finals(self) -> list[float]:
        """Sparsity of each encoder: one is dense."""
        if self.config.reverse:
            return [0.0, self.config.final]
        return super().finals

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


PRUNER = SD
