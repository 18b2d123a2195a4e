# SPDX-License-Identifier: MIT
"""One line per epoch: how the loss and the accuracy go, what extensions did, how long it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig

from solo import extensions
from solo.errors import DataError
from solo.files.results import keep_results, read_results
from solo.monitoring.console import duration, rate, say, short
from solo.monitoring.loggers import CSVMetrics
from solo.monitoring.metric_names import ACCURACIES, training_loss, words
from solo.utils.encoders import encoders_of

WARM_UP, FIRST = 2, 8  # batches of a run that are passed over, and those that foretell it
PATIENCE = 60.0  # seconds of an epoch above which a run says early how long it will take


class EpochLines(Callback):
    """Prints what is trained, then a line when an epoch is over, with the time left for the run.

    Args:
        cfg: parsed configuration of the run.
        csv: its metrics; `results.json` is kept beside their file.
        clock: seconds that only grow.

    Attributes:
        seconds: of training so far, over all parts of a run that was continued.
        images_per_second: of the last epoch's training batches, over all processes; None before.
    """

    def __init__(
        self, cfg: DictConfig, csv: CSVMetrics, clock: Callable[[], float] = time.perf_counter
    ):
        super().__init__()
        self.cfg, self.csv, self.clock = cfg, csv, clock
        self.images_per_second: float | None = None
        self._before = 0.0  # seconds of the parts of this run that are over
        self._known: dict[str, float] = {}  # metrics of those parts; not every epoch logs all
        self._started: float | None = None
        self._batches = self._images = 0
        self._epoch_started = self._last_batch = self._warm = 0.0
        self._ended: int | None = None  # epoch whose line is due
        self._validated = False

    @property
    def seconds(self) -> float:
        """Seconds of training so far, over all parts of a run that was continued."""
        return self._before + (0.0 if self._started is None else self.clock() - self._started)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what is trained on what."""
        self._started, self._batches, self._ended = self.clock(), 0, None
        self._before, self._known = self._earlier(trainer)
        if trainer.is_global_zero:
            say(*headline(trainer, pl_module, self.cfg))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the line of the epoch before, now that all have logged what they saw in it."""
        self._line(trainer)
        self._epoch_started = self._last_batch = self.clock()
        self._images, self._validated = 0, False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count batches and images; targets are the last part of every batch."""
        self._batches += 1
        self._images += len(batch[-1]) * trainer.world_size
        self._last_batch = self.clock()
        if self._batches == WARM_UP:
            self._warm = self._last_batch
        if self._batches == WARM_UP + FIRST and trainer.is_global_zero:
            self._foretell(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Figures of validation are this epoch's."""
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The line waits until all that looks at the epoch has logged."""
        self._ended = trainer.current_epoch
        seconds = self._last_batch - self._epoch_started
        self.images_per_second = self._images / seconds if seconds > 0 else None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the line of the last epoch."""
        self._line(trainer)
        self._before, self._started = self.seconds, None

    def _foretell(self, trainer: Trainer) -> None:
        """Say what a long run will take before its first epoch is over."""
        per_batch = (self._last_batch - self._warm) / FIRST
        batches = int(trainer.num_training_batches)
        if per_batch * (batches - self._batches) < PATIENCE or (trainer.max_epochs or -1) < 1:
            return
        left = per_batch * (batches * (trainer.max_epochs - trainer.current_epoch) - self._batches)
        say(
            f"time: {per_batch:.2g} s per batch, {duration(per_batch * batches)} per epoch, about "
            f"{duration(left)} left. Shorter: a smaller max_epochs, image size or encoder"
        )

    def _line(self, trainer: Trainer) -> None:
        ended, self._ended = self._ended, None
        if ended is None or not trainer.is_global_zero:
            return
        metrics = _of_epochs(trainer.callback_metrics)
        keep_results(self.csv.path.parent, self._result(trainer, metrics, ended + 1))
        parts = figures(metrics, self._validated)
        if self.images_per_second is not None:
            parts.append(f"{rate(self.images_per_second)} images/s")
        left = self._seconds_left(trainer, ended + 1)
        if left is not None:
            parts.append(f"{duration(left)} left")
        total = str(trainer.max_epochs)
        say(f"epoch {ended + 1:>{len(total)}} of {total}: {', '.join(parts)}")

    def _result(self, trainer: Trainer, metrics: Mapping[str, float], done: int) -> dict[str, Any]:
        """What `results.json` holds of the run up to now."""
        cfg = self.cfg
        return {
            "program": "linear" if "pretrained_feature_extractor" in cfg else "pretrain",
            "name": cfg.name,
            "method": cfg.get("method") or cfg.get("pretrain_method"),
            "encoder": cfg.backbone.name,
            "dataset": cfg.data.dataset,
            "seed": cfg.seed,
            "epochs": done,
            "max_epochs": trainer.max_epochs,
            "steps": trainer.global_step,
            "seconds": round(self.seconds, 3),
            "images_per_second": self.images_per_second,
            "torch": torch.__version__,
            "metrics": self._known | {k: v for k, v in metrics.items() if "/layer_" not in k},
        }

    def _earlier(self, trainer: Trainer) -> tuple[float, dict[str, float]]:
        """Seconds and metrics of the earlier parts of a run, up to their last whole epoch."""
        if not trainer.global_step:
            return 0.0, {}
        start = self.csv.start_from
        folder = self.csv.path.parent if start is None else Path(start).parent
        with suppress(DataError, AttributeError, TypeError, ValueError):
            run = read_results(folder).get("run", {})
            return float(run.get("seconds") or 0.0), dict(run.get("metrics") or {})
        return 0.0, {}

    def _seconds_left(self, trainer: Trainer, done: int) -> float | None:
        """By the mean time of a batch so far, validation and checkpoints included."""
        epochs = max(0, (trainer.max_epochs or 0) - done)
        if not self._batches or self._started is None or not epochs or trainer.should_stop:
            return None
        batches = epochs * trainer.num_training_batches
        return batches * (self.clock() - self._started) / self._batches


def _of_epochs(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of whole epochs, without Lightning's `_step` and `_epoch`."""
    found = {k: float(v) for k, v in metrics.items() if not k.endswith("_step")}
    means = {k.removesuffix("_epoch"): v for k, v in found.items() if k.endswith("_epoch")}
    return {k: v for k, v in found.items() if not k.endswith("_epoch")} | means


def figures(metrics: Mapping[str, float], validated: bool = True) -> list[str]:
    """Loss, accuracies and what extensions say of an epoch, from the metrics logged last.

    Args:
        metrics: by name.
        validated: whether those of validation are of this epoch.
    """
    loss = training_loss(metrics)
    parts = [] if loss is None else [f"{words(loss)} {metrics[loss]:.4g}"]
    for name, text in ACCURACIES.items():
        if validated and name in metrics:
            parts.append(f"{text} {metrics[name]:.2f}%")
    if "train_acc1" in metrics and not any(name in metrics for name in ACCURACIES):
        parts.append(f"training accuracy {metrics['train_acc1']:.2f}%")
    for extension in extensions.registered():
        parts += extension.figures_of_epoch(metrics)
    return parts


def headline(trainer: Trainer, module: LightningModule, cfg: DictConfig) -> list[str]:
    """What is trained, on how many images, where."""
    encoder = next(iter(encoders_of(module).values()))
    size = sum(p.numel() for p in encoder.parameters())
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    method = cfg.get("method") or ("fine-tuning" if cfg.get("finetune") else "linear evaluation")
    world, device = trainer.world_size, trainer.strategy.root_device.type
    where = device if world == 1 else f"{world} processes, {device}"
    dataset = getattr(trainer.train_dataloader, "dataset", None)
    images = f"{len(dataset):,} images, " if hasattr(dataset, "__len__") else ""
    batch = f"{cfg.optimizer.batch_size}{f' x {world}' if world > 1 else ''}"
    name = Path(cfg.data.path).name if cfg.data.get("path") else cfg.data.dataset
    return [
        f"{method}: {cfg.backbone.name}, {short(size)} parameters ({short(trained)} train, heads "
        f"included), on {where}, seed {cfg.seed}",
        f"{name}: {images}{trainer.num_training_batches:,} batches of {batch} in an "
        f"epoch; epochs {trainer.current_epoch + 1} to {trainer.max_epochs}",
    ]
