# SPDX-License-Identifier: MIT
"""GraNet (Liu et al., "Sparse Training via Boosting Pruning Plasticity with Neuroregeneration",
2021).

At each update the smallest weights of all layers go until the cubic schedule's budget is met; then
every layer swaps a share of its weights, smallest |weight| for largest |gradient|. Swapping goes on
after the ramp, with a falling share. A momentum encoder is pruned by the magnitude of its own
weights and regrows nothing.
"""

from __future__ import annotations

import math

from sparse_ext.masks.encoder import Encoder
from sparse_ext.pruning.regrow import InstantRegrowth, drop_fraction
from sparse_ext.pruning.scores.random_draws import random_masks
from sparse_ext.pruning.units import Kept
from sparse_ext.schedules import Ramp


class GraNet(InstantRegrowth):
    """Gradual magnitude pruning with neuroregeneration."""

    def plan(self) -> Ramp:
        """The ramp starts at a fixed step."""
        self.oscillation: dict[str, float] = {}
        return Ramp.plan(round(self.config.ramp_start * self.clock.steps), self.t_end, self.period)

    def initial_masks(self, encoder: Encoder, sparsity: float) -> Kept:
        """Random, with a budget per layer; everything for dense-to-sparse training."""
        counts = self.units.allocate(self.config.initial_allocation, sparsity)
        return random_masks(self.units.shapes_of_kept, counts, self.seed)

    def online_masks(self, sparsity: float) -> Kept:
        """Prune to B(s(j)) over all layers; then k_l = ceil(p nnz_l) are dropped and regrown."""
        present = self.units.kept(self.online.masks)
        pruned = self.smallest_out(self.online, sparsity, present)
        new = self.swap(pruned, self.prune_rate, math.ceil)
        self.oscillation = self.units.layer_changes(pruned, new, self.online)  # SyncCP, Eq. 7
        return new

    @property
    def prune_rate(self) -> float:
        """p(t): cosine over the whole run."""
        return drop_fraction(self.config, self.t, self.clock.steps)

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """Log the prune rate and how much of each layer the last update swapped."""
        figures = {f"layer_oscillation/{name}": v for name, v in self.oscillation.items()}
        return {"drop_fraction": self.prune_rate, **figures}

    def extra_state(self) -> dict[str, dict[str, float]]:
        """The last update's figures, for the next log."""
        return {"oscillation": self.oscillation}

    def load_extra_state(self, state) -> None:
        """Take over `extra_state`."""
        self.oscillation = dict(state["oscillation"])


PRUNER = GraNet
