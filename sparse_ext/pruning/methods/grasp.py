# SPDX-License-Identifier: MIT
"""GraSP (Wang et al., "Picking Winning Tickets Before Training by Preserving Gradient Flow", 2020).

Removing weight W changes the squared norm of the gradient by about -W * (H g); the weights with the
largest score are the ones that hinder, and go. H g comes from two half batches at initialisation,
with the run's own training loss. Supervised runs divide the logits by a temperature and draw
equally many samples of every class. A momentum encoder is pruned by the same scores.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from sparse_ext.masks.encoder import Encoder
from sparse_ext.pruning.methods.snip import SNIP
from sparse_ext.pruning.scores import scorers
from sparse_ext.pruning.scores.first_batch import Probe


class GraSP(SNIP):
    """Gradient signal preservation; `scores` are W * (H g), so that the largest are kept."""

    def look(self, probe: Probe) -> None:
        """W * (H g) by double backward."""
        if self.config.samples_per_class:
            probe.draw(self.config.head, self.config.samples_per_class, self.seed)
        if self.config.temperature != 1:
            probe.scale_logits(self.config.head, self.config.temperature)
        found = probe.second_order(scorers.hessian_gradient)
        self.scores = {name: scorers.grasp(w, found[name]) for name, w in probe.weights.items()}

    def initial_members(self, encoder: Encoder) -> Mapping[str, Tensor]:
        """Members are compared by magnitude, so scores are moved above zero."""
        return {name: score - score.min() for name, score in self.scores.items()}


PRUNER = GraSP
