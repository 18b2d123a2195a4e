# SPDX-License-Identifier: MIT
"""From a run's checkpoint to its encoder, and to what that costs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from solo.checkpoints.files import read_checkpoint
from solo.checkpoints.runs import load_run, weights_file
from solo.data.shown import input_size
from sparse_ext.cost.conventions import training_ratios
from sparse_ext.cost.per_layer import CostTable, count


def granularity(args: Mapping[str, Any]) -> str:
    """Pattern of the masks of this run."""
    section = args.get("sparse") or args.get("pruned") or {}
    return section.get("granularity") or "element"


def measure(checkpoint: str | Path, encoder: str = "online", size: int | None = None) -> CostTable:
    """Cost of the encoder in a checkpoint, at the size its evaluation uses unless told otherwise.

    Raises:
        CheckpointError: see `load_run`.
        ConfigError: the encoder does not take images of that size.
    """
    backbone, args = load_run(checkpoint, encoder)
    return count(backbone, size or input_size(args))


def training_cost(checkpoint: str | Path) -> dict[str, float]:
    """Training cost up to this checkpoint over that of dense training; empty for a dense run."""
    cost = read_checkpoint(weights_file(checkpoint)).get("sparse_state", {}).get("cost", {})
    if not cost.get("steps"):
        return {}
    return training_ratios(*(total / cost["steps"] for total in cost["sums"]))
