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
from sparse_ext.pruning.units import Kept
from sparse_ext.schedules import cosine_fraction


class RigL(Constant):
    """The pruner that drops by magnitude and grows by gradient at constant density.

    Attributes:
        t_last: step from which on masks stay as they are.
    """

    growth = "step"

    def set_up(self) -> None:
        """When masks change: every so often, until `t_last`.

        Raises:
            ConfigError: they never would.
        """
        super().set_up()
        self.random_start = self.allocation = self.config.allocation
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

    def masks(self, encoder: Encoder, sparsity: float) -> Kept:
        """f(t) = alpha/2 (1 + cos(pi t / T_end)) of every layer is swapped.

        A momentum encoder keeps the largest of its own; the density per layer is constant there,
        too.
        """
        if encoder is not self.online:
            return self.best(encoder, sparsity)
        ends = self.config.drop_start, self.config.drop_end
        fraction = cosine_fraction(self.t, max(1, self.t_last), *ends)
        return self.swap(encoder, self.units.kept(encoder.masks), fraction, math.floor)
