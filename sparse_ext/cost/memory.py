# SPDX-License-Identifier: MIT
"""What an encoder's parameters take in memory, without and with what says where they are.

SyncCP's tables print the first number (kept share of the dense bytes, no index); a sparse format
needs the second (section 14 of the algorithms specification).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from sparse_ext.cost.per_layer import CostTable, LayerCost
from sparse_ext.masks.granularity import NM, Granularity, parse

BYTES = 4  # of a float32


@dataclass(frozen=True)
class Memory:
    """Bytes of all parameters, norms and biases included.

    Attributes:
        dense: with every weight.
        kept: without the pruned ones, and without an index: no format can do with that little.
        index: bytes that say which weights are kept.
    """

    dense: int
    kept: int
    index: float

    @property
    def total(self) -> float:
        """Bytes of the kept values and of their index together."""
        return self.kept + self.index

    def to_dict(self) -> dict[str, float]:
        """The figures as plain data that JSON can hold."""
        return {**asdict(self), "total": self.total}


def memory(table: CostTable, granularity: str | Granularity = "element") -> Memory:
    """Bytes that a network takes as float32, dense and in sparse storage.

    The index of N:M layers is log2(M) bits per kept value; of other patterns one bit per group
    (element: per weight) of every layer that has lost a weight.

    Args:
        table: of `sparse_ext.cost.count`.
        granularity: pattern of the masks, as in the run's `sparse.granularity`.

    Raises:
        ConfigError: unknown granularity.
    """
    pattern = parse(granularity)
    sparse = [layer for layer in table.layers if layer.prunable and layer.kept < layer.weights]
    bits = sum(_index_bits(layer, pattern) for layer in sparse)
    return Memory(BYTES * table.parameters, BYTES * table.parameters_kept, bits / 8)


def _index_bits(layer: LayerCost, pattern: Granularity) -> float:
    if isinstance(pattern, NM):
        return layer.kept * math.log2(pattern.m)
    return pattern.n_groups(layer.shape)
