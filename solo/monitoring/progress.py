# SPDX-License-Identifier: MIT
"""The progress bar: images per second, and how much of the time the step waits for data."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

WINDOW = 1.0  # seconds that a figure is averaged over, at least


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

    def step_is_done(self, images: int) -> None:
        """A step on `images` images is over, the wait for the next batch begins."""
        self._lap()
        self._images += images
        if self._seconds >= WINDOW:
            self.images_per_second = self._images / self._seconds
            self.data_wait = self._waited / self._seconds
            self._images, self._seconds, self._waited = 0, 0.0, 0.0

    def _lap(self) -> float:
        now = self.clock()
        lap, self._last = now - self._last, now
        self._seconds += lap
        return lap


class ThroughputBar(TQDMProgressBar):
    """Lightning's bar with `images/s` (all processes together) and `data wait`."""

    def __init__(self) -> None:
        super().__init__()
        self.throughput = Throughput()

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        """What happened between two epochs (validation, checkpoints) is no wait for data."""
        super().on_train_epoch_start(trainer, *args)
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
        self.throughput.step_is_done(len(batch[-1]) * trainer.world_size)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, error: Any) -> None:
        """The bar ends here; the message gets a line of its own."""
        if self.is_enabled:
            print(flush=True)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The figures of the progress bar: Lightning's first, then throughput."""
        items = super().get_metrics(trainer, pl_module)
        if self.throughput.images_per_second is not None:
            items["images/s"] = f"{self.throughput.images_per_second:,.0f}"
            items["data wait"] = f"{self.throughput.data_wait:.0%}"
        return items
