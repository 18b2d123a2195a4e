# SPDX-License-Identifier: MIT
"""What the last checkpoint of a run says by itself: its encoders, their masks and their cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from solo.errors import SoloError
from sparse_ext.report.runlog import RunLog

if TYPE_CHECKING:
    from torch import nn

    from sparse_ext.cost import CostTable
    from sparse_ext.cost.memory import Memory


@dataclass(frozen=True)
class Measured:
    """Encoders of a checkpoint and what they cost.

    Attributes:
        encoders: by name, `online` first, as evaluation sees them.
        tables: cost of each at the size that the run's images have.
        sizes: bytes of each.
        obstacle: why there is nothing; empty otherwise, also where no checkpoint was written.
    """

    encoders: dict[str, nn.Module] = field(default_factory=dict)
    tables: dict[str, CostTable] = field(default_factory=dict)
    sizes: dict[str, Memory] = field(default_factory=dict)
    obstacle: str = ""

    @property
    def sparsities(self) -> dict[str, float]:
        """Zeros in the prunable set of each encoder, from 0 to 1."""
        return {name: table.prunable.sparsity for name, table in self.tables.items()}


def measure_run(log: RunLog) -> Measured:
    """Open the last checkpoint of a run; a broken one is said and is no error."""
    try:
        return _measured(log)
    except SoloError as error:  # a run's curves are worth a page even when its checkpoint is not
        return Measured(obstacle=str(error))


def _measured(log: RunLog) -> Measured:
    """The same.

    Raises:
        CheckpointError: the checkpoint and args.json do not fit together.
    """
    from solo.checkpoints.runs import open_run
    from solo.data.shown import input_size
    from solo.monitoring.loggers import last_weights
    from sparse_ext.cost.memory import memory
    from sparse_ext.cost.of_checkpoint import granularity
    from sparse_ext.cost.per_layer import count

    if last_weights(log.folder) is None or not log.args:
        return Measured()
    run = open_run(log.folder)
    encoders = {name: run.encoder(name).backbone for name in run.encoders}
    size = input_size(run.args)
    tables = {name: count(backbone, size) for name, backbone in encoders.items()}
    pattern = granularity(run.args)
    sizes = {name: memory(table, pattern) for name, table in tables.items()}
    return Measured(encoders, tables, sizes)
