# SPDX-License-Identifier: MIT
"""SD-MoCo, SD-BYOL, SD-Barlow: the sparse-dense baselines of SyncCP.

One encoder of a pair is pruned at a fixed sparsity, the other one is dense; at the start of every
epoch the mask is chosen anew by magnitude among all weights. Pruned weights rest: they get no
gradient and no weight decay, keep their value and may be chosen again (it lies in `shadow`). With
one encoder, view 0 goes through the mask and the others through the dense network, whose gradient
keeps pruned weights moving; evaluation sees the pruned network.
"""

from __future__ import annotations

from typing import Any

from solo.errors import ConfigError
from sparse_ext.masks.encoder import Encoder
from sparse_ext.masks.living_weights import Branches, make_functional
from sparse_ext.pruning.constant_sparsity import EpochMasks
from sparse_ext.pruning.pruner import Needs

FIRST_VIEW = Branches(first=True, others=False, evaluation=True)


class SD(EpochMasks):
    """A new magnitude mask every epoch; the stored weights of a pair are zero where pruned."""

    regrow_init = "latent"

    @classmethod
    def needs(cls, config: Any, shared: bool) -> Needs:
        """Pruned weights of a pair rest in shadows; one encoder stores them alive."""
        return Needs(latents=not shared, stored_zeros=not shared)

    def set_up(self) -> None:
        """One encoder of a pair is dense (`SDConfig.momentum` says which)."""
        if self.config.reverse:
            self.finals = [0.0, self.config.final]
        super().set_up()

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
