# SPDX-License-Identifier: MIT
"""Writes checkpoints and args.json so that a kill at any moment leaves a complete pair behind."""

from __future__ import annotations

import os
import random
import string
import time
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf

from solo.args.check import fill
from solo.args.schema import Checkpoint as CheckpointKeys
from solo.files.packed import pack
from solo.files.whole import SUFFIX, remove_partial, write_json
from solo.monitoring.loggers import last_checkpoint


class Checkpointer(Callback):
    """Saves checkpoints as `<logdir>/<version>/<name>-<version>-ep=<epoch>.ckpt` and `args.json`.

    The state is taken at the end of an epoch into a temporary file. That file gets its name once
    the metrics of the epoch are on the disk too, and only then the previous one goes: a run that
    is killed and resumed loses neither state nor metrics.

    Args:
        cfg: configuration to store; `cfg.name` is part of the file name.
        logdir: folder of the method.
        frequency: epochs between two checkpoints; the last epoch is always saved.
        keep_prev: keep all of them.
        pack: compress them; every program opens such files, too.
    """

    def __init__(
        self,
        cfg: DictConfig,
        logdir: str | Path = Path("trained_models"),
        frequency: int = 1,
        keep_prev: bool = False,
        pack: bool = False,
    ):
        super().__init__()
        self.cfg = cfg
        self.logdir = Path(logdir)
        self.frequency = frequency
        self.keep_prev = keep_prev
        self.pack = pack
        self.last_ckpt: Path | None = None
        self._taken: tuple[Path, Path] | None = None

    @staticmethod
    def add_and_assert_specific_cfg(cfg: DictConfig) -> DictConfig:
        """Set the defaults of the section `checkpoint`."""
        fill(cfg, "checkpoint", CheckpointKeys)
        return cfg

    @staticmethod
    def random_string(letter_count: int = 4, digit_count: int = 4) -> str:
        """Shuffled letters and digits; drawn apart from the seeded generators."""
        source = random.Random(time.time_ns())
        letters = source.choices(string.ascii_lowercase, k=letter_count)
        drawn = letters + source.choices(string.digits, k=digit_count)
        source.shuffle(drawn)
        return "".join(drawn)

    def initial_setup(self, trainer: Trainer) -> None:
        """Decide the version on rank 0, tell the others, and create the folder."""
        version = None
        if trainer.is_global_zero:
            version = self._offline_version() if trainer.logger is None else trainer.logger.version
        version = str(trainer.strategy.broadcast(version))
        self.wandb_run_id = None if trainer.logger is None else version
        self.path = self.logdir / version
        self.ckpt_placeholder = f"{self.cfg.name}-{version}" + "-ep={}.ckpt"
        if trainer.is_global_zero:
            self.path.mkdir(parents=True, exist_ok=True)
            remove_partial(self.path)
            self.last_ckpt = last_checkpoint(self.path)

    def _offline_version(self) -> str:
        while True:
            version = f"offline-{self.random_string()}"
            if not (self.logdir / version).exists():
                return version

    def save_args(self, trainer: Trainer) -> None:
        """Write args.json: the whole configuration and `wandb_run_id`."""
        if not trainer.is_global_zero:
            return
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
        self._take(trainer)
        self._publish(trainer)

    def _take(self, trainer: Trainer) -> None:
        if trainer.sanity_checking:
            return
        final = self.path / self.ckpt_placeholder.format(trainer.current_epoch)
        partial = final.with_name(final.name + SUFFIX)
        trainer.save_checkpoint(partial, weights_only=False)  # with the optimizer
        if self.pack and trainer.is_global_zero:
            pack(partial)
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
        if self.last_ckpt not in (None, final) and not self.keep_prev:
            self.last_ckpt.unlink(missing_ok=True)
        self.last_ckpt = final

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Create the folder and write args.json before the first step."""
        self.initial_setup(trainer)
        self.save_args(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The metrics of the epoch before are logged: its checkpoint may be seen."""
        self._publish(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the state when it is due, and always after the last epoch."""
        epoch = trainer.current_epoch
        last = trainer.should_stop or epoch + 1 == trainer.max_epochs
        steps = trainer.max_steps
        if epoch % self.frequency == 0 or last or (steps > 0 and trainer.global_step >= steps):
            self._take(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Publish the last checkpoint to the loggers that want it."""
        self._publish(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception) -> None:
        """A run that is stopped between two epochs keeps what it had saved."""
        self._publish(trainer)
