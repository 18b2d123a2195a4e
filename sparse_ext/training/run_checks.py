# SPDX-License-Identifier: MIT
"""What sparse training reads from a Lightning run, and the runs that it refuses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    StochasticWeightAveraging,
    WeightAveraging,
)
from torch.optim import Optimizer

from solo.errors import CheckpointError, ConfigError
from solo.utils.encoders import encoders_of as both
from sparse_ext.compat import keep_from_ddp, unscales_by_itself
from sparse_ext.config.sections import SparseConfig
from sparse_ext.masks.encoder import Encoder
from sparse_ext.masks.living_weights import MARKER
from sparse_ext.masks.masked_layers import Masked
from sparse_ext.schedules import Clock

UNSUPPORTED = ("FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy", "XLAFSDPStrategy")


def encoders_of(module: LightningModule) -> list[Encoder]:
    """The masked encoders of a module, online first."""
    return [Encoder(backbone) for backbone in both(module).values()]


def ignore_in_ddp(module: LightningModule) -> None:
    """Keep DDP from broadcasting our buffers at every forward: that costs time and hides drift."""
    for prefix, child in module.named_modules():
        if isinstance(child, Masked):
            buffers = child.named_buffers(prefix, recurse=False)  # type: ignore[attr-defined]
            keep_from_ddp(module, (name for name, _ in buffers))


def check_storage(module: Any, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
    """Before a run goes on: its checkpoint must store weights as its method does.

    Raises:
        CheckpointError: weights live on under their masks on one side only.
    """
    kinds = ("are stored as zero where they are pruned", "live on under their masks")
    for name, layer in module.named_modules():
        if not isinstance(layer, Masked) or f"{prefix}{name}.weight" not in state:
            continue
        mine, theirs = hasattr(layer, MARKER), f"{prefix}{name}.{MARKER}" in state
        if mine != theirs:
            raise CheckpointError(
                f"The weights of '{name}' {kinds[theirs]} in the checkpoint, in this run they "
                f"{kinds[mine]}: sparse.name was another method. Set it back, or start anew."
            )


def check_strategy(trainer: Trainer, module: LightningModule) -> None:
    """Raise ConfigError for a way of training that masks cannot follow."""
    strategy = type(trainer.strategy).__name__
    if strategy in UNSUPPORTED:
        raise ConfigError(
            f"strategy={strategy} replaces or shards the weights, so masks would not follow them. "
            f"Train a sparse encoder with strategy=ddp or on one device."
        )
    if not module.automatic_optimization:
        raise ConfigError(
            f"{type(module).__name__} optimizes by hand (automatic_optimization=False); sparse "
            f"training needs Lightning's automatic optimization."
        )


_AVERAGES = "it averages weights behind the optimizer, and the average has the union of all masks"
_TUNES = "it trains a while and takes weights back from a file, which knows of no masks yet"
#: callbacks of Lightning that masks cannot follow -> why, and what to do instead
_REFUSED: dict[type[Callback], str] = {
    WeightAveraging: f"{_AVERAGES}. Leave it out: a momentum encoder averages with masks in force",
    StochasticWeightAveraging: f"{_AVERAGES}. Leave it out",
    LearningRateFinder: f"{_TUNES}. Find the rate with the dense module, then make it sparse",
    BatchSizeFinder: f"{_TUNES}. Find the batch size with the dense module, then make it sparse",
}


def check_callbacks(trainer: Trainer) -> None:
    """Raise ConfigError for a callback that masks or their schedule cannot follow."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        why = next((why for kind, why in _REFUSED.items() if isinstance(callback, kind)), None)
        if why is not None:
            raise ConfigError(f"{type(callback).__name__} does not go with sparse training: {why}.")
        steps = {trainer.accumulate_grad_batches}
        scheduled = isinstance(callback, GradientAccumulationScheduler)
        if scheduled and set(callback.scheduling.values()) != steps:  # type: ignore[attr-defined]
            raise ConfigError(
                f"GradientAccumulationScheduler({callback.scheduling}) changes "  # type: ignore
                f"how many optimizer steps an epoch has, which a sparsity schedule counts in: set "
                f"accumulate_grad_batches of the Trainer instead, one for the whole run."
            )


def check_encoders(encoders: list[Encoder], config: SparseConfig) -> None:
    """Raise ConfigError if the encoders do not fit each other or the configuration."""
    if len(encoders) == 1:
        if given := config.momentum_options():
            keys = ", ".join(f"sparse.{key}={getattr(config, key)}" for key in given)
            raise ConfigError(
                f"{keys}: only for a method with a momentum encoder; this one has none. Leave "
                f"{'it' if len(given) == 1 else 'them'} out."
            )
    elif encoders[0].sizes != encoders[1].sizes:
        raise ConfigError("The online and the momentum encoder have different prunable layers.")


def only_optimizer(trainer: Trainer) -> Optimizer:
    """The one optimizer that the run must have.

    Raises:
        ConfigError: for several, or one that scales gradients by itself.
    """
    if len(trainer.optimizers) != 1:
        raise ConfigError(
            f"Sparse training supports one optimizer, this run has {len(trainer.optimizers)}."
        )
    optimizer = trainer.optimizers[0]
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ConfigError(
            "LBFGS moves weights several times within a step, between which masks are not in "
            "force. Use an optimizer of one gradient a step, such as SGD, LARS or AdamW."
        )
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is not None and unscales_by_itself(optimizer):
        raise ConfigError(
            "A fused optimizer with fp16 loss scaling never shows its unscaled gradients. Use "
            "precision=bf16-mixed, or the optimizer without fused=True."
        )
    return optimizer


def clock_of(trainer: Trainer) -> Clock:
    """Length of the run, from the trainer: the one place where batches become steps.

    Raises:
        ConfigError: for a run without end.
    """
    steps = trainer.estimated_stepping_batches
    if not math.isfinite(steps) or steps < 1:
        raise ConfigError(
            "A sparsity schedule needs to know the length of the run: set max_epochs or max_steps."
        )
    per_epoch = steps
    if math.isfinite(trainer.num_training_batches):
        per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
    return Clock(int(steps), max(1, math.ceil(steps / per_epoch)), int(per_epoch))
