# SPDX-License-Identifier: MIT
"""Random pruning: masks drawn from the seed at initialisation, which never change."""

from __future__ import annotations

from sparse_ext.masks.encoder import Encoder
from sparse_ext.pruning.constant_sparsity import Constant
from sparse_ext.pruning.scores import random_draws
from sparse_ext.pruning.units import Kept


class Random(Constant):
    """A random permutation per layer, or one over all of them; the denser masks contain both."""

    def set_up(self) -> None:
        """Layers have budgets of their own, or one draw goes over all of them."""
        super().set_up()
        rule = self.config.allocation
        self.random_start = None if rule == "global" else rule

    def initial_masks(self, encoder: Encoder, sparsity: float) -> Kept:
        """As many as `allocation` gives each layer, or as fall to it."""
        if self.random_start is not None:
            return super().initial_masks(encoder, sparsity)
        shapes = self.units.shapes_of_kept
        lots = {n: random_draws.random(s, self.seed, n, "initial_mask") for n, s in shapes.items()}
        return self.units.within(lambda share: self.units.largest(lots, share), sparsity)
