# SPDX-License-Identifier: MIT
"""Keeps the epoch with the best value of a metric, beside the newest checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from solo.errors import ConfigError, did_you_mean
from solo.files.whole import remove_partial
from solo.monitoring.step_metrics import epoch_metrics
from solo.utils.checkpointer import Checkpointer


class BestCheckpoint(Callback):
    """Saves `<run>/best/<name>-<version>-ep=<epoch>.ckpt` and `args.json` at every new best value.

    `<run>/best` is the folder of a run like any other: evaluation programs take it.

    Args:
        saver: what writes the run's newest checkpoints; decides on the folder and the names.
        monitor: name of a logged metric, such as `quality/backbone_rankme`.
        mode: `max`, or `min` where smaller is better.
    """

    def __init__(self, saver: Checkpointer, monitor: str, mode: str = "max"):
        super().__init__()
        self.saver = saver
        self.monitor = monitor
        self.sign = 1.0 if mode == "max" else -1.0
        self.best = -math.inf
        self.path: Path | None = None

    @property
    def folder(self) -> Path:
        """Where the best epoch is kept."""
        return self.saver.path / "best"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what an interrupted save has left; find the best of a run that goes on."""
        if trainer.is_global_zero and self.folder.is_dir():
            remove_partial(self.folder)
        kept = sorted(self.folder.glob("*.ckpt")) if self.folder.is_dir() else []
        self.path = kept[-1] if kept else None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if this epoch is the best so far; NaN never is.

        Raises:
            ConfigError: nothing of that name is logged.
        """
        logged = epoch_metrics(trainer, pl_module)
        value = logged.get(self.monitor)
        if value is None:
            self._explain(trainer, logged)
            return
        score = self.sign * float(trainer.strategy.broadcast(float(value)))
        if not score > self.best:
            return
        self.best = score
        final = self.saver.save_copy(trainer, self.folder)
        if trainer.is_global_zero and self.path not in (None, final):
            self.path.unlink(missing_ok=True)  # type: ignore[union-attr]
        self.path = final

    def _explain(self, trainer: Trainer, logged: Mapping[str, Any]) -> None:
        validated = trainer.check_val_every_n_epoch or 1
        if trainer.current_epoch + 1 < validated:
            return  # what validation logs is still to come
        if self.best > -math.inf:
            return
        names = [name for name in logged if not name.endswith("_step")]
        raise ConfigError(
            f"checkpoint.monitor='{self.monitor}' is not logged by this run. "
            f"{did_you_mean(self.monitor, names)}"
        )

    def state_dict(self) -> dict[str, Any]:
        """The best value, which a resumed run must beat."""
        return {"monitor": self.monitor, "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the best value, if it is of the same metric."""
        if state_dict["monitor"] == self.monitor:
            self.best = state_dict["best"]
