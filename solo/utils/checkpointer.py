# SPDX-License-Identifier: MIT
"""Writes checkpoints and args.json so that a kill at any moment leaves a complete pair behind."""

from __future__ import annotations

import os
import random
import string
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf

from solo.args.check import fill
from solo.args.schema import Run
from solo.errors import OutputError
from solo.files.packed import pack
from solo.files.whole import SUFFIX, refusal, remove_partial, write_json
from solo.monitoring.guards import NonFiniteGuard
from solo.monitoring.interruptions import WithinEpoch
from solo.monitoring.loggers import checkpoints, last_checkpoint

WITHIN_EPOCH = "-step="


class Checkpointer(Callback):
    """Saves checkpoints as `<logdir>/<version>/<name>-<version>-ep=<epoch>.ckpt` and `args.json`.

    The state is taken at the end of an epoch into a temporary file. That file gets its name once
    the metrics of the epoch are on the disk too, and only then older ones go: a run that is killed
    and resumed loses neither state nor metrics.

    Within an epoch the state is saved as `<...>-ep=<epoch>-step=<step>.ckpt`: every so many
    optimizer steps, and when the run is told to stop (see `solo.monitoring.interruptions`). Such
    files go when their epoch is saved.

    Args:
        cfg: configuration to store; `cfg.name` is part of the file name.
        logdir: folder of the method.
        frequency: epochs between two checkpoints; the last epoch is always saved.
        keep_prev: keep the checkpoints of all epochs.
        keep_last: otherwise, keep so many. The ones before the newest are for the day on which
            that one is damaged.
        every_n_steps: optimizer steps between two checkpoints within an epoch; None: none.
        pack: compress them; every program opens such files, too.
    """

    def __init__(
        self,
        cfg: DictConfig,
        logdir: str | Path = Path("trained_models"),
        frequency: int = 1,
        keep_prev: bool = False,
        keep_last: int = 1,
        every_n_steps: int | None = None,
        pack: bool = False,
    ):
        super().__init__()
        self.cfg = cfg
        self.logdir = Path(logdir)
        self.frequency = frequency
        self.keep_prev = keep_prev
        self.keep_last = keep_last
        self.every_n_steps = every_n_steps
        self.pack = pack
        self.last_ckpt: Path | None = None
        self._taken: tuple[Path, Path] | None = None
        self._saved_step = 0

    @staticmethod
    def add_and_assert_specific_cfg(cfg: DictConfig) -> DictConfig:
        """Set the defaults of the section `checkpoint`."""
        fill(cfg, Run, "checkpoint")
        return cfg

    @staticmethod
    def random_string(letter_count: int = 4, digit_count: int = 4) -> str:
        """Shuffled letters and digits; drawn apart from the seeded generators."""
        source = random.Random(time.time_ns())
        letters = source.choices(string.ascii_lowercase, k=letter_count)
        drawn = letters + source.choices(string.digits, k=digit_count)
        source.shuffle(drawn)
        return "".join(drawn)

    def begin(self, version: str) -> None:
        """Make the folder of a run and write its args.json, before anything else is done."""
        self._place(version, version)
        self._tidy()
        self._write_args(self.path)

    def initial_setup(self, trainer: Trainer) -> None:
        """Decide the version on rank 0, tell the others, and create the folder."""
        version = None
        if trainer.is_global_zero:
            version = self._offline_version() if trainer.logger is None else trainer.logger.version
        version = str(trainer.strategy.broadcast(version))
        self._place(version, None if trainer.logger is None else version)
        if trainer.is_global_zero:
            self._tidy()

    def _place(self, version: str, wandb_run_id: str | None) -> None:
        self.wandb_run_id = wandb_run_id
        self.path = self.logdir / version
        self.ckpt_placeholder = f"{self.cfg.name}-{version}" + "-ep={}.ckpt"

    def _offline_version(self) -> str:
        while True:
            version = f"offline-{self.random_string()}"
            if not (self.logdir / version).exists():
                return version

    def save_args(self, trainer: Trainer) -> None:
        """Write args.json: the whole configuration and `wandb_run_id`."""
        if trainer.is_global_zero:
            self._write_args(self.path)

    def _write_args(self, folder: Path) -> None:
        args = OmegaConf.to_container(self.cfg, resolve=True)
        args["wandb_run_id"] = self.wandb_run_id
        write_json(folder / "args.json", args, indent=2)

    def save_copy(self, trainer: Trainer, folder: Path) -> Path:
        """Save the current state and args.json into another folder too; all ranks call this.

        Returns:
            the checkpoint's path.
        """
        final = folder / self.ckpt_placeholder.format(trainer.current_epoch)
        partial = final.with_name(final.name + SUFFIX)
        if trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
        trainer.save_checkpoint(partial, weights_only=False)
        if trainer.is_global_zero:
            self._write_args(folder)
            os.replace(partial, final)
        return final

    def save(self, trainer: Trainer) -> None:
        """Save the current state under its final name at once (all ranks call this)."""
        self._take(trainer, trainer.current_epoch)
        self._publish(trainer)

    def has_epoch(self, epoch: int) -> bool:
        """Whether the state at the end of this epoch is saved (the same on all ranks)."""
        return (self.path / self.ckpt_placeholder.format(epoch)).exists()

    def save_within_epoch(self, trainer: Trainer) -> None:
        """Save the state between two batches under a name of its own (all ranks call this).

        Methods whose epochs have a state that no checkpoint holds are not saved.
        """
        if not getattr(trainer.lightning_module, "saved_within_epoch", True):
            return
        for guard in (c for c in trainer.callbacks if isinstance(c, NonFiniteGuard)):
            guard.check(trainer, trainer.lightning_module)
        within = next(c for c in trainer.callbacks if isinstance(c, WithinEpoch))
        within.saving = True
        try:
            self._take(trainer, f"{trainer.current_epoch}{WITHIN_EPOCH}{trainer.global_step}")
        finally:
            within.saving = False
        self._publish(trainer)

    def _take(self, trainer: Trainer, moment: int | str) -> None:
        if trainer.sanity_checking:
            return
        final = self.path / self.ckpt_placeholder.format(moment)
        partial = final.with_name(final.name + SUFFIX)
        if trainer.is_global_zero and not self.path.is_dir():
            raise OutputError(f"The folder of this run, '{self.path}', is gone: nothing is saved.")
        try:
            trainer.save_checkpoint(partial, weights_only=False)  # with the optimizer
            if self.pack and trainer.is_global_zero:
                pack(partial)
        except Exception as error:
            reason = refusal(error)
            if reason is None:
                raise
            remove_partial(self.path)
            kept = f"Last checkpoint: {self.last_ckpt}." if self.last_ckpt else "There is no other."
            raise OutputError(f"'{final}' cannot be written: {reason}. {kept}") from error
        self._taken = (partial, final)

    def _publish(self, trainer: Trainer) -> None:
        if self._taken is None:
            return
        (partial, final), self._taken = self._taken, None
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            logger.save()
        os.replace(partial, final)
        self._tidy()

    def _tidy(self) -> None:
        """Remove what a killed run has left half written, and checkpoints that are not kept."""
        self.path.mkdir(parents=True, exist_ok=True)
        remove_partial(self.path)
        found = checkpoints(self.path)
        epochs = [path for path in found if WITHIN_EPOCH not in path.stem]
        before = found.index(epochs[-1]) if epochs else 0
        within = [path for path in found[before:] if WITHIN_EPOCH in path.stem]
        kept = (epochs if self.keep_prev else epochs[-self.keep_last :]) + within[-self.keep_last :]
        for path in set(found) - set(kept):
            path.unlink(missing_ok=True)
        self.last_ckpt = last_checkpoint(self.path)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Create the folder and write args.json before the first step."""
        self.initial_setup(trainer)
        self.save_args(trainer)
        self._saved_step = trainer.global_step

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The metrics of the epoch before are logged: its checkpoint may be seen."""
        self._publish(trainer)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save within the epoch when so many optimizer steps are done."""
        step = trainer.global_step
        due = self.every_n_steps is not None and step and step % self.every_n_steps == 0
        if due and batch_idx and step != self._saved_step:
            self._saved_step = step
            self.save_within_epoch(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the state when it is due, and always after the last epoch."""
        epoch = trainer.current_epoch
        last = trainer.should_stop or epoch + 1 == trainer.max_epochs
        steps = trainer.max_steps
        if epoch % self.frequency == 0 or last or (steps > 0 and trainer.global_step >= steps):
            self._take(trainer, epoch)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Publish the last checkpoint to the loggers that want it."""
        self._publish(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception) -> None:
        """A run that is stopped between two epochs keeps what it had saved."""
        self._publish(trainer)
