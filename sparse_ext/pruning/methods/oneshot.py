# SPDX-License-Identifier: MIT
"""One-shot pruning: the least important weights go at one moment, and stay away.

Before the first step, of fresh or of trained weights (`dense_checkpoint`), or later in the run
(`prune_at`); the steps that are left fine-tune what is kept. Important is what is large, or what
`score` finds so.
"""

from __future__ import annotations

from typing import Any

from sparse_ext.pruning.constant_sparsity import fraction_of
from sparse_ext.pruning.dense_start import load_dense
from sparse_ext.pruning.pruner import Pruner


class OneShot(Pruner):
    """One threshold over all layers, or a budget for each.

    Attributes:
        when: the step after which weights go; below 0 = before the first step.
    """

    def set_up(self) -> None:
        """Keep the encoders dense until the moment that `when` names."""
        self.allocation = self.config.allocation
        self.when = fraction_of(self.config.prune_at, self.clock.steps) - 1
        self.begins = list(self.finals) if self.when < 0 else [0.0 for _ in self.encoders]

    def enter(self, module: Any, fresh: bool) -> None:
        """Take over the trained weights that the run starts from."""
        if fresh and self.config.dense_checkpoint is not None:
            load_dense(module, self.config.dense_checkpoint, "oneshot")

    def due(self) -> bool:
        """Whether masks change after this step, which happens once in a run."""
        return self.t == self.when

    def sparsities(self) -> list[float]:
        """Sparsity per encoder: none before the pruning, the final one after it."""
        return list(self.finals) if self.t >= self.when else list(self.begins)
