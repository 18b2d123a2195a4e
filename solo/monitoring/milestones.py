# SPDX-License-Identifier: MIT
"""Milestones: values that metrics must have reached by an epoch, or the run ends there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from solo.errors import ConfigError, did_you_mean


def check_milestones(milestones: Mapping[Any, Any]) -> dict[int, dict[str, float]]:
    """`milestones` of a configuration as {epoch: {metric: value}}.

    Raises:
        ConfigError: a key is no epoch, or a value no number.
    """
    checked: dict[int, dict[str, float]] = {}
    for epoch, wanted in milestones.items():
        if not str(epoch).isdigit() or int(epoch) < 1 or not isinstance(wanted, Mapping):
            raise ConfigError(
                f"milestones: '{epoch}: {wanted}' must be a number of epochs and what must have "
                "been reached by then, such as milestones={10: {val_knn_acc1: 30}}"
            )
        for name, value in wanted.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ConfigError(f"milestones.{epoch}.{name}={value!r} must be a number")
        checked[int(epoch)] = {str(name): float(value) for name, value in wanted.items()}
    return checked


class Milestones(Callback):
    """Ends a run, after its checkpoint, that has not got where it should be; one line says why.

    Of a metric with `loss` in its name the milestone is the largest value that will do, of every
    other one the smallest.

    Args:
        milestones: number of epochs trained to {metric: value}.
    """

    def __init__(self, milestones: Mapping[Any, Any]):
        super().__init__()
        self.milestones = check_milestones(milestones)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare what this epoch has logged.

        Raises:
            ConfigError: the metric is not logged in this epoch.
        """
        epoch = trainer.current_epoch + 1
        missed = [
            f"{name} is {value:.4g}, not {'at most' if _falls(name) else 'at least'} {wanted:.4g}"
            for name, wanted in self.milestones.get(epoch, {}).items()
            if not _reached(name, value := self._value(trainer, name, epoch), wanted)
        ]
        if missed:
            trainer.should_stop = True
            if trainer.is_global_zero:
                print(f"STOPPED at the milestone of epoch {epoch}: {'; '.join(missed)}", flush=True)

    def _value(self, trainer: Trainer, name: str, epoch: int) -> float:
        value = trainer.callback_metrics.get(name)
        if value is None:
            names = [name for name in trainer.callback_metrics if not name.endswith("_step")]
            every = trainer.check_val_every_n_epoch or 1
            hint = f" (validation runs every {every} epochs)" if every > 1 else ""
            raise ConfigError(
                f"milestones.{epoch}.{name}: this is not logged in epoch {epoch}{hint}. "
                f"{did_you_mean(name, names)}"
            )
        return float(trainer.strategy.broadcast(float(value)))


def _falls(name: str) -> bool:
    return "loss" in name


def _reached(name: str, value: float, wanted: float) -> bool:
    return value <= wanted if _falls(name) else value >= wanted
