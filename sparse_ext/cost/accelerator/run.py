# SPDX-License-Identifier: MIT
"""What the accelerator model reads from a checkpoint: masks, schedule, initial masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from solo.checkpoints.runs import open_run
from solo.data.shown import input_size
from solo.errors import CheckpointError
from sparse_ext.cost.accelerator import cycle_model
from sparse_ext.masks.granularity import Block
from sparse_ext.masks.masked_layers import masked_layers
from sparse_ext.pruning.units import Units


@dataclass(frozen=True)
class Run:
    """A run as the model sees it.

    Attributes:
        layers: of its encoder.
        now: share of 8x8 blocks kept per masked layer, online first.
        initial: the same before the ramp.
        schedule: see `cycle_model.path`.
        steps: optimizer steps up to the checkpoint.
    """

    layers: Sequence[cycle_model.Layer]
    now: Sequence[Mapping[str, float]]
    initial: Sequence[Mapping[str, float]]
    schedule: Sequence[tuple[float, int]]
    steps: int


def load(checkpoint: str, size: int | None = None) -> Run:
    """Read the layers and densities of a sparse run from its checkpoint.

    Raises:
        CheckpointError: it cannot be read, or is of no sparse run.
    """
    run = open_run(checkpoint)
    backbone, args, content = run.encoder().backbone, run.args, run.checkpoint
    state = content.get("sparse_state")
    if state is None or not masked_layers(backbone):
        raise CheckpointError(
            f"{checkpoint} holds no sparse run, so there is no schedule to follow. Give a .ckpt "
            f"of a run with +sparse=..."
        )
    nets = [backbone, *(run.encoder(name).backbone for name in run.encoders[1:])]
    now = [cycle_model.kept_blocks(net) for net in nets]
    layers = cycle_model.measure(backbone, size or input_size(args))
    shapes = {name: tuple(layer.weight.shape) for name, layer in masked_layers(backbone).items()}
    initial = [_initial(args["sparse"], share, shapes) for share in state["begins"]]
    return Run(layers, now, initial, cycle_model.path(state), int(state["t"]))


def _initial(
    sparse: Mapping[str, Any], share: float, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, float]:
    """Share of blocks kept before the ramp, by the run's own initial allocation.

    Where units are not blocks, hardly any block is empty while sparsity is low.
    """
    units = Units(sparse["granularity"], shapes)
    if not isinstance(units.granularity, Block) or sparse.get("coupled"):
        return dict.fromkeys(shapes, 1.0)
    kept = units.allocate(sparse.get("initial_allocation") or "uniform", share)
    return {name: kept[name] / units.sizes[name] for name in shapes}
