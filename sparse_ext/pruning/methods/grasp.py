# SPDX-License-Identifier: MIT
"""GraSP (Wang et al., "Picking Winning Tickets Before Training by Preserving Gradient Flow", 2020).

Removing weight W changes the squared norm of the gradient by about -W * (H g); the weights with the
largest score are the ones that hinder, and go. H g comes from two half batches at initialisation,
with the run's own training loss. Supervised runs divide the logits by a temperature and draw
equally many samples of every class. A momentum encoder is pruned by the same scores.
"""

from __future__ import annotations

from sparse_ext.pruning.constant_sparsity import Constant
from sparse_ext.pruning.scores.first_batch import Probe


class GraSP(Constant):
    """Gradient signal preservation: masks by the score `grasp` of the first batch."""

    def look(self, probe: Probe) -> None:
        """With labels: enough samples of every class, and logits of a higher temperature."""
        if self.config.samples_per_class:
            probe.draw(self.config.head, self.config.samples_per_class, self.seed)
        if self.config.temperature != 1:
            probe.scale_logits(self.config.head, self.config.temperature)
        super().look(probe)
