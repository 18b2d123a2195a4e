# SPDX-License-Identifier: MIT
"""SNIP (Lee et al., "SNIP: Single-shot Network Pruning based on Connection Sensitivity", 2019).

The derivative of the loss by a multiplicative mask at 1 is g * W. The largest |g * W| over all
layers are kept, from one batch at initialisation, with the run's own training loss, whatever that
is. A momentum encoder, which starts with the same weights, is pruned by the same scores.
"""

from __future__ import annotations

from sparse_ext.pruning.constant_sparsity import Constant


class SNIP(Constant):
    """Connection sensitivity: masks by the score `snip` of the first batch."""
