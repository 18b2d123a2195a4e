# SPDX-License-Identifier: MIT
"""Gradual magnitude pruning (Zhu & Gupta, "To prune, or not to prune", 2017).

Sparsity follows a cubic ramp; at each update the weights of smallest magnitude go, and nothing
comes back. A momentum encoder is pruned by the magnitudes of its own latents.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from sparse_ext import allocation
from sparse_ext.encoder import Encoder
from sparse_ext.pruner import Masks, Pruner, budget
from sparse_ext.schedules import Ramp


class GMP(Pruner):
    """Gradual magnitude pruning, over all layers together or with a budget per layer."""

    def plan(self) -> Ramp:
        """The ramp starts at a fixed step."""
        return Ramp.plan(round(self.config.ramp_start * self.clock.steps), self.t_end, self.period)

    def due(self) -> bool:
        """After the ramp nothing would change."""
        return super().due() and self.ramp is not None and self.t <= self.ramp.end

    def smallest_out(
        self, encoder: Encoder, sparsity: float, eligible: Mapping[str, Tensor] | None = None
    ) -> Masks:
        """As the base class, or layer by layer when `allocation` gives each its budget."""
        if self.config.allocation == "global":
            return super().smallest_out(encoder, sparsity, eligible)
        rule = {"erk": allocation.erk, "er": allocation.er, "uniform": allocation.uniform}
        wished = rule[self.config.allocation](encoder.masks.shapes, 1 - sparsity)
        open_ = eligible or {name: mask | True for name, mask in encoder.masks.items()}
        # rounding may wish one weight more than a layer still has: another layer keeps it then
        sizes = {name: int(mask.count_nonzero()) for name, mask in open_.items()}
        shares = {name: min(1.0, wished[name] / max(1, sizes[name])) for name in sizes}
        kept = allocation.exact_budgets(shares, sizes, budget(sparsity, encoder))
        return {
            name: allocation.keep_topk(value.abs(), kept[name], open_[name])
            for name, value in encoder.latents.items()
        }


PRUNER = GMP
