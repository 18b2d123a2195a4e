# SPDX-License-Identifier: MIT
"""Milestones: values that metrics must have reached by an epoch, or the run ends there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from solo.errors import ConfigError, did_you_mean
from solo.monitoring.console import say
from solo.monitoring.step_metrics import epoch_metrics


def check_milestones(
    milestones: Mapping[Any, Any], max_epochs: int | None = None
) -> dict[int, dict[str, float]]:
    """`milestones` of a configuration as {epoch: {metric: value}}.

    Args:
        milestones: as written.
        max_epochs: of the run; None: not known.

    Raises:
        ConfigError: a key is no epoch of the run, or a value no number.
    """
    checked: dict[int, dict[str, float]] = {}
    for epoch, wanted in milestones.items():
        if not str(epoch).isdigit() or int(epoch) < 1 or not isinstance(wanted, Mapping):
            raise ConfigError(
                f"milestones: '{epoch}: {wanted}' must be a number of epochs and what must have "
                "been reached by then, such as milestones={10: {val_knn_acc1: 30}}"
            )
        if max_epochs is not None and int(epoch) > max_epochs:
            raise ConfigError(
                f"milestones.{epoch}: the run ends after max_epochs={max_epochs} and would never "
                f"get there. Take an epoch from 1 to {max_epochs}, or a larger max_epochs."
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
        max_epochs: of the run; None: not known.
    """

    def __init__(self, milestones: Mapping[Any, Any], max_epochs: int | None = None):
        super().__init__()
        self.milestones = check_milestones(milestones, max_epochs)
        self._missed = ""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare what this epoch has logged.

        Raises:
            ConfigError: the metric is not logged in this epoch.
        """
        epoch = trainer.current_epoch + 1
        if epoch not in self.milestones:
            return
        logged = epoch_metrics(trainer, pl_module)
        missed = [
            f"{name} is {value:.4g}, not {'at most' if _falls(name) else 'at least'} {wanted:.4g}"
            for name, wanted in self.milestones[epoch].items()
            if not _reached(name, value := self._value(trainer, logged, name), wanted)
        ]
        if missed:
            trainer.should_stop = True
            self._missed = f"STOPPED at the milestone of epoch {epoch}: {'; '.join(missed)}"

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say why the run ends here, below the line of its last epoch."""
        if self._missed and trainer.is_global_zero:
            say(self._missed)

    def _value(self, trainer: Trainer, logged: Mapping[str, Any], name: str) -> float:
        value = logged.get(name)
        if value is None:
            epoch = trainer.current_epoch + 1
            names = [name for name in logged if not name.endswith("_step")]
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
