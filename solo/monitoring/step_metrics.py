# SPDX-License-Identifier: MIT
"""Metrics of training steps that cost next to nothing between two log intervals.

Lightning's `log` takes 1.4 to 2.1 ms per step, averages over the ranks in every step, and copies
plain numbers to the device, which waits for it. Here a step only remembers its tensors; Lightning
hears of them when it would write them down: in steps that are logged, and at the end of the epoch.
Names, values and rows of the loggers are those of `self.log(..., on_epoch=True, sync_dist=True)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from solo.compat import loggers_are_due
from solo.monitoring.interruptions import KEY
from solo.monitoring.profiling import LOGGING, section

# What Lightning assumes where a call of `log` says nothing.
_UNSET = {
    "prog_bar": False,
    "reduce_fx": "mean",
    "enable_graph": False,
    "sync_dist": False,
    "add_dataloader_idx": True,
    "rank_zero_only": False,
}


class Gathered:
    """The values of one metric in the epoch so far.

    Attributes:
        total: sum of value times weight of the values that were folded already.
        weight: sum of their weights.
        last: the newest value, None before the first one.
    """

    def __init__(self, total: Tensor | float = 0.0, weight: int = 0) -> None:
        self.total = total
        self.weight = weight
        self.last: Tensor | None = None
        self._values: list[Tensor] = []
        self._weights: list[int] = []

    def add(self, value: Tensor, weight: int) -> None:
        """Remember a scalar of a step on `weight` images; no kernel runs."""
        self.last = value
        self._values.append(value)
        self._weights.append(weight)

    def fold(self) -> None:
        """Add up what was remembered, on its device."""
        if self._values:
            values = torch.stack([v.reshape(()) for v in self._values]).float()
            weights = torch.tensor(self._weights, dtype=torch.float32, device=values.device)
            self.total = self.total + (values * weights).sum()
            self.weight += sum(self._weights)
            self._values, self._weights = [], []

    def state(self) -> tuple[Tensor | float, int]:
        """What makes it anew: the total on the CPU, and its weight."""
        self.fold()
        total = self.total.detach().cpu() if isinstance(self.total, Tensor) else self.total
        return total, self.weight

    def mean(self) -> Tensor:
        """Mean over the epoch so far, weighted by the images."""
        self.fold()
        return self.total / self.weight


class StepMetrics:
    """Mixed into a LightningModule, before it; its own and its methods' calls of `log` stay.

    Only the two kinds of calls that methods make in every step are deferred: those of a training
    step with `on_epoch=True, sync_dist=True` (or either), and those of `on_train_batch_end` without
    options, which are read in logged steps alone. Everything else goes to Lightning at once.

    Attributes:
        images_in_step: images of the batch under way, the weight of its metrics.
    """

    images_in_step: int = 1

    def log(self, name: str, value: Any, *args: Any, **options: Any) -> None:
        """Log a metric with the arguments of Lightning's `log`, without waiting for the device."""
        with section(LOGGING):
            self._log(name, value, *args, **options)

    def _log(self, name: str, value: Any, *args: Any, **options: Any) -> None:
        options = {k: v for k, v in options.items() if v is not None and v != _UNSET.get(k)}
        hook = None if args or self._trainer is None else self._current_fx_name
        if hook == "on_train_batch_end" and not options:
            if self._logs_now():
                super().log(name, value)
        elif hook == "training_step" and _per_step_and_epoch(options) and _is_scalar(value):
            self._gather(name, value.detach(), options.get("sync_dist", False))
        else:
            super().log(name, value, *args, **options)

    def on_train_epoch_end(self) -> None:
        """Log the mean of each metric over the epoch that ends."""
        super().on_train_epoch_end()
        self.log_epoch_means()

    def log_epoch_means(self) -> None:
        """Log the means now, at the end of an epoch; a second call of the epoch logs nothing."""
        for (name, sync), gathered in self._metrics_of_epoch().items():
            mean = gathered.mean()
            super().log(f"{name}_epoch", mean, on_epoch=True, sync_dist=sync)
            super().log(name, mean, on_epoch=True, sync_dist=sync, logger=False)
        self._metrics_of_epoch().clear()

    def _gather(self, name: str, value: Tensor, sync: bool) -> None:
        gathered = self._metrics_of_epoch().setdefault((name, sync), Gathered())
        gathered.add(value, self.images_in_step)
        if self._logs_now():
            gathered.fold()
            super().log(f"{name}_step", value, on_step=True, on_epoch=False, sync_dist=sync)
            super().log(name, value, on_step=True, on_epoch=False, sync_dist=sync, logger=False)

    def newest_values(self) -> dict[str, Tensor]:
        """The newest value of each metric that the steps of this epoch have gathered, by name."""
        gathered = self._metrics_of_epoch().items()
        return {name: found.last for (name, _), found in gathered if found.last is not None}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Within an epoch: what it has gathered so far."""
        super().on_save_checkpoint(checkpoint)  # type: ignore[misc]
        if KEY in checkpoint:
            gathered = self._metrics_of_epoch().items()
            checkpoint[KEY]["metrics"] = [[*key, *value.state()] for key, value in gathered]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on gathering where an interrupted epoch has stopped."""
        super().on_load_checkpoint(checkpoint)  # type: ignore[misc]
        self.__dict__["_restored"] = checkpoint.get(KEY, {}).get("metrics", [])

    def _metrics_of_epoch(self) -> dict[tuple[str, bool], Gathered]:
        """What this epoch has gathered; what an interrupted one has left is dropped."""
        epoch = (id(self.trainer), self.trainer.current_epoch)
        if self.__dict__.get("_gathered_in") != epoch:
            self.__dict__["_gathered_in"] = epoch
            restored = self.__dict__.pop("_restored", [])
            self.__dict__["_gathered"] = {
                (name, sync): Gathered(total, weight) for name, sync, total, weight in restored
            }
        return self.__dict__["_gathered"]

    def _logs_now(self) -> bool:
        """Whether anybody reads the metrics of this step: a logger, or who looks at the epoch."""
        trainer = self.trainer
        due = loggers_are_due(trainer) or trainer.fast_dev_run
        return bool(due or trainer.is_last_batch)


def epoch_metrics(trainer: Trainer, module: LightningModule) -> Mapping[str, Any]:
    """What the epoch that ends has logged; of metrics of training steps their means over it.

    Lightning calls the callbacks at the end of an epoch before the module, which has the means.

    Args:
        trainer: of the run, within its callbacks' `on_train_epoch_end`, on every rank.
        module: what it trains.
    """
    if isinstance(module, StepMetrics):
        module.log_epoch_means()
    return trainer.callback_metrics


def _per_step_and_epoch(options: dict[str, Any]) -> bool:
    return options.get("on_epoch") is True and not set(options) - {"on_epoch", "sync_dist"}


def _is_scalar(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() == 1 and value.is_floating_point()
