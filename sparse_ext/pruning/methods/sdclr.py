# SPDX-License-Identifier: MIT
"""SDCLR (Jiang et al., "Self-Damaging Contrastive Learning", 2021).

The first view goes through the dense network, the second through the same network with the
ceil(q N) smallest of its present weights, over all layers, masked away; both branches are trained
by the plain loss between them. The mask is made anew at the start of every epoch. Each branch has
batch norms of its own. The dense network is the result; no weight is ever set to zero.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from solo.errors import ConfigError
from sparse_ext.masks.dual_norms import make_dual
from sparse_ext.masks.encoder import Encoder
from sparse_ext.masks.living_weights import Branches, make_functional
from sparse_ext.pruning.constant_sparsity import EpochMasks
from sparse_ext.pruning.pruner import Needs

DENSE_FIRST = Branches(first=False, others=True, evaluation=False)


class SDCLR(EpochMasks):
    """Dense against pruned, from one set of weights."""

    @classmethod
    def needs(cls, config: Any, shared: bool) -> Needs:
        """No weight is ever set to zero."""
        return Needs(latents=False, stored_zeros=False)

    @classmethod
    def prepare(cls, config: Any, module: Any, encoders: list[Encoder]) -> list[Encoder]:
        """Masks into the forward pass; a second set of batch norms, that of the heads included."""
        if len(encoders) > 1:
            raise ConfigError(
                f"sparse.name=sdclr is for methods with one encoder, such as SimCLR; "
                f"{type(module).__name__} has a momentum encoder. Use +sparse=sd."
            )
        if config.dual_bn:
            _double_norms(module)
        return [make_functional(encoders[0], DENSE_FIRST)]

    def enter(self, module: Any, fresh: bool) -> None:
        """The conversion to synchronised batch norm comes after `prepare`."""
        if self.config.dual_bn:
            _double_norms(module)

    def set_up(self) -> None:
        """Prepare masks of exactly ceil(q N) units for the second branch."""
        super().set_up()
        self.units.prune_at_least = True


def _double_norms(module: nn.Module) -> None:
    make_dual(module.children(), DENSE_FIRST)
