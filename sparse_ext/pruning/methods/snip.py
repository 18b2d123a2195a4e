# SPDX-License-Identifier: MIT
"""SNIP (Lee et al., "SNIP: Single-shot Network Pruning based on Connection Sensitivity", 2019).

The derivative of the loss by a multiplicative mask at 1 is g * W. The largest |g * W| over all
layers are kept, from one batch at initialisation, with the run's own training loss, whatever that
is. A momentum encoder, which starts with the same weights, is pruned by the same scores.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from sparse_ext.masks.encoder import Encoder
from sparse_ext.pruning.constant_sparsity import Constant
from sparse_ext.pruning.scores import scorers
from sparse_ext.pruning.scores.first_batch import Probe
from sparse_ext.pruning.units import Kept


class SNIP(Constant):
    """Connection sensitivity."""

    needs_data = True
    scores: Mapping[str, Tensor] = {}

    def look(self, probe: Probe) -> None:
        """|g * W| with the gradient of the global batch."""
        grads = probe.gradients()
        self.scores = {name: scorers.snip(w, grads[name]) for name, w in probe.weights.items()}

    def initial_masks(self, encoder: Encoder, sparsity: float) -> Kept:
        """The largest scores over all layers together."""
        return self.units.largest(self.units.pool(self.scores), sparsity)

    def initial_members(self, encoder: Encoder) -> Mapping[str, Tensor]:
        """Within an N:M group the scores decide too."""
        return self.scores


PRUNER = SNIP
