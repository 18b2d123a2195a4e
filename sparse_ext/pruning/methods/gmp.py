# SPDX-License-Identifier: MIT
"""Gradual magnitude pruning (Zhu & Gupta, "To prune, or not to prune", 2017).

Sparsity follows a cubic ramp; at each update the units of smallest magnitude go, and nothing
comes back. A momentum encoder is pruned by the magnitudes of its own latents.
"""

from __future__ import annotations

from sparse_ext.pruning.pruner import Pruner
from sparse_ext.schedules import Ramp


class GMP(Pruner):
    """Gradual magnitude pruning, over all layers together or with a budget per layer."""

    def set_up(self) -> None:
        """Layers may have budgets of their own."""
        self.allocation = self.config.allocation

    def plan(self) -> Ramp:
        """The ramp starts at a fixed step."""
        return Ramp.plan(round(self.config.ramp_start * self.clock.steps), self.t_end, self.period)

    def due(self) -> bool:
        """Whether masks change after this step; behind the ramp they do not."""
        return super().due() and self.ramp is not None and self.t <= self.ramp.end
