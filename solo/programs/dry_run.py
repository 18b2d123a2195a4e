# SPDX-License-Identifier: MIT
"""`++dry_run=True`: what a pretraining will take, from ten steps of it, and nothing written."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from omegaconf import DictConfig

from solo.data.resident.memory import gigabytes
from solo.monitoring.console import duration, rate, say
from solo.programs.training import trainer_arguments

if TYPE_CHECKING:
    from solo.programs.training import Data

WARM_UP, MEASURED = 2, 10  # steps that are passed over, and those that count


class Stopwatch(Callback):
    """Times the steps after the first ones and ends the run.

    Args:
        clock: seconds that only grow.
        warm_up: steps that are passed over.
        measured: steps that count.

    Attributes:
        seconds: from the end of the warm-up to the end of the last measured step.
        steps: that were measured.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        warm_up: int = WARM_UP,
        measured: int = MEASURED,
    ) -> None:
        super().__init__()
        self.clock, self.warm_up, self.measured = clock, warm_up, measured
        self.seconds, self.steps, self._seen = 0.0, 0, 0
        self._began: float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run that is shorter than the warm-up is timed from here."""
        self._began = self.clock()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Count a batch, whatever waited for it."""
        self._seen += 1
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = self.clock()
        longer = trainer.num_training_batches * _epochs(trainer) > self.warm_up
        if self._seen == self.warm_up and longer:
            self._began, self.steps = now, 0
            return
        self.steps += 1
        self.seconds = now - (self._began or now)
        if self.steps >= self.measured:
            trainer.should_stop = True


def is_dry(trainer: Trainer) -> bool:
    """Whether this is a dry run, which ends long before what was planned."""
    return any(isinstance(callback, Stopwatch) for callback in trainer.callbacks)


def _epochs(trainer: Trainer) -> int:
    return max(1, trainer.max_epochs or 1)


def dry_run(
    cfg: DictConfig, model: LightningModule, data: Data, watch: Stopwatch | None = None
) -> Trainer:
    """Run a few steps of a pretraining and print what all of it will take.

    Args:
        cfg: parsed configuration.
        model: the method.
        data: (training loader, validation loader or None), or a data module.
        watch: that times the steps; None times ten by the wall.
    """
    watch = watch or Stopwatch()
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}
    arguments = {**trainer_arguments(cfg), **quiet, "num_sanity_val_steps": 0}
    trainer = Trainer(**arguments, logger=False, callbacks=[watch], enable_checkpointing=False)
    loaders: dict[str, Any] = {"datamodule": data}
    if not isinstance(data, LightningDataModule):
        loaders = {"train_dataloaders": data[0]}
    trainer.fit(model, **loaders)
    if trainer.is_global_zero:
        say(*summary(cfg, trainer, watch))
    return trainer


def summary(cfg: DictConfig, trainer: Trainer, watch: Stopwatch) -> list[str]:
    """Steps, time and memory of the whole run, in lines."""
    per_step = watch.seconds / max(1, watch.steps)
    batches, epochs = int(trainer.num_training_batches), _epochs(trainer)
    total = batches * epochs
    if (cfg.get("max_steps") or -1) > 0:
        total = min(total, cfg.max_steps * trainer.accumulate_grad_batches)
    images = cfg.optimizer.batch_size * trainer.world_size
    speed = f"{rate(images / per_step)} images/s" if per_step else "at once"
    return [
        f"Dry run: {watch.steps} steps measured, {per_step:.3g} s each ({speed}).",
        f"  steps   {batches:,} in an epoch, {total:,} in {epochs:,} epochs",
        f"  time    {duration(total * per_step)}, without validation and checkpoints",
        f"  memory  {gigabytes(peak_memory())} at most",
    ]


def peak_memory() -> int:
    """Bytes at most: of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
