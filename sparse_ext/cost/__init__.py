# SPDX-License-Identifier: MIT
"""What an encoder costs: parameters and MACs per layer, dense and effective, and training cost.

    table = cost.count(backbone, (3, 224, 224))
    table.macs_dense, table.macs_effective

MACs are multiply-accumulates; FLOPs are two per MAC. *Effective* counts only kept weights, so it
is what a kernel that skips every zero would compute. A masked dense convolution is not faster.
Command: `python3 -m sparse_ext.cost CHECKPOINT`.
"""

from sparse_ext.cost.conventions import CONVENTIONS, training_ratios
from sparse_ext.cost.memory import Memory, memory
from sparse_ext.cost.per_layer import CostTable, LayerCost, count

__all__ = [
    "CONVENTIONS",
    "CostTable",
    "LayerCost",
    "Memory",
    "count",
    "memory",
    "training_ratios",
]
