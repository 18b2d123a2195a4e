# SPDX-License-Identifier: MIT
"""The progress bar: the loss, images per second, how long the step waits for data."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from tqdm import tqdm

from solo.monitoring.console import rate
from solo.monitoring.metric_names import training_loss, words
from solo.monitoring.step_metrics import StepMetrics

WINDOW = 1.0  # seconds that a figure is averaged over, at least
TO_A_FILE = 10.0  # seconds between two lines of a bar that nobody watches


class Throughput:
    """Averages over the last window of at least a second.

    Nothing is synchronised with a GPU: over many steps the host cannot run ahead of it.

    Args:
        clock: seconds that only grow.

    Attributes:
        images_per_second: of the last full window, None before.
        data_wait: share of that window in [0, 1] in which there was no batch to work on.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self.clock = clock
        self.images_per_second: float | None = None
        self.data_wait: float | None = None
        self._images, self._seconds, self._waited = 0, 0.0, 0.0
        self.wait()

    def wait(self) -> None:
        """From now on a batch is waited for; what was before does not count."""
        self._last = self.clock()

    def batch_is_here(self) -> None:
        """The wait for a batch is over."""
        self._waited += self._lap()

    def step_is_done(self, images: int) -> bool:
        """A step on `images` images is over, the wait for the next batch begins.

        Returns:
            Whether a window is full, so that there are new figures.
        """
        self._lap()
        self._images += images
        full = self._seconds >= WINDOW
        if full:
            self.images_per_second = self._images / self._seconds
            self.data_wait = self._waited / self._seconds
            self._images, self._seconds, self._waited = 0, 0.0, 0.0
        return full

    def _lap(self) -> float:
        now = self.clock()
        lap, self._last = now - self._last, now
        self._seconds += lap
        return lap


class ThroughputBar(TQDMProgressBar):
    """Lightning's bar with the loss, `images/s` (all processes together) and `data wait`.

    The bar of an epoch makes room for its line (`solo.programs.epoch_lines`). Nothing is read
    from a GPU more often than once a second. A file that the output goes to gets a line of the bar
    every ten seconds at most.
    """

    def __init__(self) -> None:
        super().__init__()
        self.throughput = Throughput()
        self._loss: dict[str, str] = {}
        self._shown = 0.0

    def init_train_tqdm(self) -> Any:
        """The bar of training, which goes away at its end."""
        bar = super().init_train_tqdm()
        bar.leave = False
        return bar

    def init_sanity_tqdm(self) -> Any:
        """The bar of the first look at validation images, on a terminal only."""
        return super().init_sanity_tqdm() if sys.stdout.isatty() else tqdm(disable=True)

    def init_validation_tqdm(self) -> Any:
        """The bar of validation, on a terminal only: a file has the line of the epoch."""
        return super().init_validation_tqdm() if sys.stdout.isatty() else tqdm(disable=True)

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        """What happened between two epochs (validation, checkpoints) is no wait for data."""
        total = self.total_train_batches
        self.train_progress_bar.set_description(
            f"Epoch {trainer.current_epoch + 1} of {trainer.max_epochs}", refresh=False
        )
        self.train_progress_bar.reset(None if math.isinf(total) else int(total))
        self.throughput.wait()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """A batch has arrived on the device."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self.throughput.batch_is_here()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the images; targets are the last part of every batch."""
        if self.throughput.step_is_done(len(batch[-1]) * trainer.world_size):
            self._loss = newest_loss(pl_module)
        if self._due(trainer.is_last_batch):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_batch_end(self, *args: Any, **options: Any) -> None:
        """A batch of validation images is done."""
        if self._due():
            super().on_validation_batch_end(*args, **options)

    def _due(self, last: bool = False) -> bool:
        """Whether the bar moves: always on a terminal, now and then in a file."""
        now = time.monotonic()
        due = sys.stdout.isatty() or last or now - self._shown > TO_A_FILE
        self._shown = now if due else self._shown
        return due

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, error: Any) -> None:
        """The bar ends here; the message gets a line of its own."""
        if self.is_enabled:
            print(flush=True)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The figures of the progress bar: the loss, Lightning's, then throughput."""
        items = {**self._loss, **super().get_metrics(trainer, pl_module)}
        items.pop("v_num", None)
        if self.throughput.images_per_second is not None:
            items["images/s"] = rate(self.throughput.images_per_second)
            items["data wait"] = f"{self.throughput.data_wait:.0%}"
        return items


def newest_loss(module: LightningModule) -> dict[str, str]:
    """The newest value of the loss that `module` is about, by its name; waits for the device."""
    values = module.newest_values() if isinstance(module, StepMetrics) else {}
    name = training_loss(values)
    return {} if name is None else {words(name): f"{float(values[name]):.4g}"}
