# SPDX-License-Identifier: MIT
"""From a run's checkpoint to its encoder, and to what that costs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solo.errors import CheckpointError
from solo.utils.weights import load_encoder, read_args, read_checkpoint
from sparse_ext.cost.layers import CostTable, count
from sparse_ext.cost.training import training_ratios

if TYPE_CHECKING:
    from torch import nn

# Side of the images that evaluation shows to an encoder; 224 for the others.
EVALUATION_SIZE = {"cifar10": 32, "cifar100": 32, "digits": 32, "stl10": 96}


def rebuild(checkpoint: str | Path, encoder: str = "online") -> tuple[nn.Module, dict[str, Any]]:
    """The encoder of a run with its weights and masks, and the run's configuration.

    Args:
        checkpoint: a file with `args.json` in its folder.
        encoder: `online` or `momentum`.

    Raises:
        CheckpointError: no such file, no `args.json`, or the two do not fit.
    """
    from omegaconf import OmegaConf

    from solo.backbones import build_encoder
    from sparse_ext.extension import register

    register()
    args = read_args(checkpoint)
    if args is None:
        raise CheckpointError(
            f"{checkpoint}: its folder has no args.json, which says what encoder this is. "
            f"Keep the file that the run wrote beside its checkpoints."
        )
    dense = {key: value for key, value in args.items() if key not in ("sparse", "gating")}
    backbone = build_encoder(OmegaConf.create(dense))
    return load_encoder(backbone, checkpoint, encoder).backbone, args  # type: ignore[arg-type]


def input_size(args: Mapping[str, Any]) -> int:
    """Side of the images that evaluation shows to the encoder of this run."""
    data = args["data"]
    crop = (data.get("augmentations") or {}).get("crop_size")
    return EVALUATION_SIZE.get(data["dataset"]) or crop or 224


def granularity(args: Mapping[str, Any]) -> str:
    """Pattern of the masks of this run."""
    return (args.get("sparse") or {}).get("granularity") or "element"


def measure(checkpoint: str | Path, encoder: str = "online", size: int | None = None) -> CostTable:
    """Cost of the encoder in a checkpoint, at the size its evaluation uses unless told otherwise.

    Raises:
        CheckpointError: see `rebuild`.
        ConfigError: the encoder does not take images of that size.
    """
    backbone, args = rebuild(checkpoint, encoder)
    return count(backbone, size or input_size(args))


def training_cost(checkpoint: str | Path) -> dict[str, float]:
    """Training cost up to this checkpoint over that of dense training; empty for a dense run."""
    cost = read_checkpoint(checkpoint).get("sparse_state", {}).get("cost", {})
    if not cost.get("steps"):
        return {}
    return training_ratios(*(total / cost["steps"] for total in cost["sums"]))
