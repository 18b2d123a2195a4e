# SPDX-License-Identifier: MIT
"""One-shot magnitude pruning: the smallest weights go at one moment, and stay away.

Before the first step, of fresh or of trained weights (`dense_checkpoint`), or later in the run
(`prune_at`); the steps that are left fine-tune what is kept.
"""

from __future__ import annotations

from typing import Any

from sparse_ext.masks.encoder import Encoder
from sparse_ext.pruning.constant_sparsity import fraction_of
from sparse_ext.pruning.dense_start import load_dense
from sparse_ext.pruning.pruner import Pruner
from sparse_ext.pruning.units import Kept


class OneShot(Pruner):
    """One threshold over all layers, or a budget for each."""

    def plan(self) -> None:
        """Masks come before step 0, or after the step `when`."""
        self.when = fraction_of(self.config.prune_at, self.clock.steps) - 1
        self.begins = list(self.finals) if self.when < 0 else [0.0 for _ in self.encoders]
        self.aims = list(self.begins)

    def enter(self, module: Any, fresh: bool) -> None:
        """Take over trained weights."""
        if fresh and self.config.dense_checkpoint is not None:
            load_dense(module, self.config.dense_checkpoint, "oneshot")

    def due(self) -> bool:
        """Once."""
        return self.t == self.when

    def sparsities(self) -> list[float]:
        """Nothing, then everything."""
        return list(self.finals) if self.t >= self.when else list(self.begins)

    def smallest_out(self, encoder: Encoder, sparsity: float, eligible: Kept | None = None) -> Kept:
        """By magnitude over all layers, or layer by layer."""
        if self.config.allocation == "global":
            return super().smallest_out(encoder, sparsity, eligible)
        values = self.magnitudes(encoder)
        return self.units.largest_per_layer(values, sparsity, self.config.allocation, eligible)


PRUNER = OneShot
