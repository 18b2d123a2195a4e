# SPDX-License-Identifier: MIT
"""RigL (Evci et al., "Rigging the Lottery: Making All Tickets Winners", 2020).

Random masks of constant density per layer. Every `update_period` steps each layer drops the
floor(f(t) nnz_l) weights of smallest magnitude and grows as many of largest |gradient|, at zero;
the optimizer skips that step. A momentum encoder keeps, in each layer, its largest weights.
"""

from __future__ import annotations

import math

from torch.optim import Optimizer

from solo.errors import ConfigError
from sparse_ext.masks.encoder import Encoder
from sparse_ext.pruning.constant_sparsity import Constant, fraction_of
from sparse_ext.pruning.regrow import InstantRegrowth, drop_fraction
from sparse_ext.pruning.scores.random_draws import random_masks
from sparse_ext.pruning.units import Kept


class RigL(InstantRegrowth, Constant):
    """Drop by magnitude, grow by gradient."""

    def plan(self) -> None:
        """When masks change: every so often, until `t_last`."""
        super().plan()
        period = self.config.update_period or min(self.config.PERIOD, self.clock.steps // 195)
        self.period = max(1, period)
        self.t_last = fraction_of(self.config.update_end, self.clock.steps)
        if self.config.update_period and self.period >= self.t_last:
            raise ConfigError(
                f"sparse.update_period={self.period}: masks would never change in a run of "
                f"{self.clock.steps} steps, whose last change is before step {self.t_last} "
                f"(sparse.update_end={self.config.update_end}). Lower it, or train longer."
            )

    def due(self) -> bool:
        """Random masks have earned one period before their first change."""
        return 0 < self.t < self.t_last and self.t % self.period == 0

    def adjust_gradients(self, optimizer: Optimizer) -> None:
        """The gradient of an update decides about masks only: the optimizer then finds none."""
        if self.config.skip_step and self.due():
            optimizer.zero_grad(set_to_none=True)
        else:
            super().adjust_gradients(optimizer)

    def initial_masks(self, encoder: Encoder, sparsity: float) -> Kept:
        """Random; the denser encoder's masks contain the sparser one's."""
        counts = self.units.allocate(self.config.allocation, sparsity)
        return random_masks(self.units.shapes_of_kept, counts, self.seed)

    def online_masks(self, sparsity: float) -> Kept:
        """f(t) = alpha/2 (1 + cos(pi t / T_end)) of every layer is swapped."""
        fraction = drop_fraction(self.config, self.t, self.t_last)
        return self.swap(self.units.kept(self.online.masks), fraction, math.floor)

    def momentum_masks(self, encoder: Encoder, sparsity: float) -> Kept:
        """Density per layer is constant here too."""
        values = self.magnitudes(encoder)
        return self.units.largest_per_layer(values, sparsity, self.config.allocation)


PRUNER = RigL
