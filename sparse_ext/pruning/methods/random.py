# SPDX-License-Identifier: MIT
"""Random pruning: masks drawn from the seed at initialisation, which never change."""

from __future__ import annotations

from sparse_ext.masks.encoder import Encoder
from sparse_ext.pruning.constant_sparsity import Constant
from sparse_ext.pruning.scores import random_draws
from sparse_ext.pruning.scores.random_draws import random_masks
from sparse_ext.pruning.units import Kept


class Random(Constant):
    """A random permutation per layer, or one over all of them; the denser masks contain both."""

    def initial_masks(self, encoder: Encoder, sparsity: float) -> Kept:
        """As many as `allocation` gives each layer, or as fall to it."""
        shapes, rule = self.units.shapes_of_kept, self.config.allocation
        if rule != "global":
            return random_masks(shapes, self.units.allocate(rule, sparsity), self.seed)
        lots = {n: random_draws.random(s, self.seed, n, "initial_mask") for n, s in shapes.items()}
        return self.units.largest(lots, sparsity)


PRUNER = Random
