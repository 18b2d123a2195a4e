# SPDX-License-Identifier: MIT
"""Keeps the encoder's weights as they are after a given number of optimizer steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from solo.errors import ConfigError
from sparse_ext.tickets import run_folder


class Snapshot(Callback):
    """Callback that writes one weight file at a given step.

    Args:
        path: of the file.
        step: optimizer steps before it is written; 0 is before the first.
    """

    def __init__(self, path: str | Path, step: int) -> None:
        self.path, self.step = Path(path), step
        self._taken = False

    @property
    def state_key(self) -> str:
        """A key of its own, since a run may have several snapshots."""
        return f"Snapshot-{self.path.name}"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A resumed run has passed its earlier steps before.

        Raises:
            ConfigError: the run ends before that step.
        """
        if self.step >= trainer.estimated_stepping_batches:
            raise ConfigError(
                f"tickets.rewind_samples: the rewind point is {self.step} optimizer steps, but the "
                f"run has only {trainer.estimated_stepping_batches}: train longer, or rewind less"
            )
        self._taken = trainer.global_step > self.step
        self._take(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write once it is time; of accumulated batches, after the one that made the step."""
        self._take(trainer, pl_module)

    def _take(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._taken or trainer.global_step != self.step:
            return
        self._taken = True
        if trainer.is_global_zero:
            run_folder.save_weights(self.path, run_folder.encoder_weights(pl_module.backbone))  # type: ignore[arg-type]
