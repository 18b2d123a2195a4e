# SPDX-License-Identifier: MIT
"""GraNet (Liu et al., "Sparse Training via Boosting Pruning Plasticity with Neuroregeneration",
2021).

At each update the smallest weights of all layers go until the cubic schedule's budget is met; then
every layer swaps a share of its weights, smallest |weight| for largest |gradient|. What the first
half prunes and the second brings back starts at zero, without momentum; what the second drops and
brings back goes on, both as in the authors' code. Swapping continues after the ramp, with a falling
share. A momentum encoder is pruned by the magnitude of its own weights and regrows nothing.
"""

from __future__ import annotations

from sparse_ext.masks.encoder import Encoder
from sparse_ext.pruning.pruner import Pruner
from sparse_ext.pruning.units import Kept
from sparse_ext.schedules import Ramp, cosine_fraction


class GraNet(Pruner):
    """The pruner of gradual magnitude pruning with neuroregeneration.

    Attributes:
        oscillation: share of each layer that the last update swapped (SyncCP, Eq. 7).
    """

    saved = ("oscillation",)
    growth = "step"

    def set_up(self) -> None:
        """Initial masks are random where the run does not start dense."""
        self.random_start = self.config.initial_allocation
        self.oscillation: dict[str, float] = {}

    def plan(self) -> Ramp:
        """The ramp starts at a fixed step."""
        return Ramp.plan(round(self.config.ramp_start * self.clock.steps), self.t_end, self.period)

    def due(self) -> bool:
        """The first update comes after one period, not after the first step."""
        return self.t > 0 and super().due()

    def masks(self, encoder: Encoder, sparsity: float) -> Kept:
        """Prune to B(s(j)) over all layers; then k_l = ceil(p nnz_l) are dropped and regrown."""
        kept = super().masks(encoder, sparsity)
        if encoder is not self.online:
            return kept
        self.between = kept
        swapped = self.swap(encoder, kept, self.prune_rate)
        self.oscillation = self.units.layer_changes(kept, swapped, encoder)
        return swapped

    @property
    def prune_rate(self) -> float:
        """Share of a layer that is swapped at this step, p(t): cosine over the whole run."""
        ends = self.config.drop_start, self.config.drop_end
        return cosine_fraction(self.t, max(1, self.clock.steps), *ends)

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """Log the prune rate and how much of each layer the last update swapped."""
        figures = {f"layer_oscillation/{name}": v for name, v in self.oscillation.items()}
        return {"drop_fraction": self.prune_rate, **figures}
