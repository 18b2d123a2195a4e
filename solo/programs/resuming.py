# SPDX-License-Identifier: MIT
"""What a run continues, the folder that belongs to it alone, and how it may end."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from solo.checkpoints.files import read_args
from solo.checkpoints.training_state import (
    check_training_state,
    read_training_state,
    resumable,
)
from solo.errors import CheckpointError, ConfigError, SoloError
from solo.files.lock import LOCK, RECORD, FolderLock, one_at_a_time
from solo.monitoring.interruptions import Stopped
from solo.monitoring.loggers import CSVMetrics, build_loggers, remove_empty
from solo.utils.auto_resumer import AutoResumer
from solo.utils.checkpointer import Checkpointer


@dataclass(frozen=True)
class Resume:
    """What a run continues.

    Attributes:
        path: checkpoint; None: it begins.
        wandb_run_id: of its wandb run.
        folder: of a run that auto-resume has found; it is used again.
        finished: nothing is left to train.
    """

    path: Path | None = None
    wandb_run_id: str | None = None
    folder: Path | None = None
    finished: bool = False


def find_resume(cfg: DictConfig, logdir: Path) -> Resume:
    """What the run continues: `resume_from_checkpoint`, or what auto-resume finds.

    Raises:
        CheckpointError: the file is missing, truncated or not a checkpoint of a training run.
    """
    given = cfg.resume_from_checkpoint
    if given is None and cfg.auto_resume.enabled:
        found = AutoResumer(logdir, cfg.auto_resume.max_hours).find(cfg)
        if found is None:
            return Resume()
        done = found.state is not None and _is_finished(found.state, cfg)
        return Resume(found.checkpoint, found.wandb_run_id, found.folder, done)
    if given is None:
        return Resume()
    path = Path(str(given))
    try:
        args = read_args(path) or {}
    except CheckpointError:  # of a run whose weights and state are whole
        args = {}
    run_id = cfg.get("wandb_run_id") or args.get("wandb_run_id")
    try:
        path = resumable(path)
    except CheckpointError as error:
        raise CheckpointError(f"resume_from_checkpoint: {error}") from error
    return Resume(path, run_id, None, _is_finished(read_training_state(path), cfg))


def _is_finished(state: Mapping[str, Any], cfg: DictConfig) -> bool:
    try:
        done = int(state["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])
    except (LookupError, TypeError, ValueError):  # damaged, as `check_training_state` will say
        return False
    steps = cfg.get("max_steps") or -1
    return done >= cfg.max_epochs > 0 or 0 < steps <= state["global_step"]


@dataclass
class Run:
    """A run: what it continues, its loggers, what saves it, and how far it has got.

    Attributes:
        resume: what it continues.
        loggers: of its metrics.
        saver: of its checkpoints.
        begun: whether its training has begun.
        stepped: whether a batch is behind it, so that its checkpoint has proved to be a whole one.
    """

    resume: Resume
    loggers: list[Logger]
    saver: Checkpointer | None
    begun: bool = False
    stepped: bool = False


@contextmanager
def run_folder(cfg: DictConfig, logdir: Path, resume: Resume) -> Iterator[Run]:
    """Inside, the folder of the run belongs to this process and those that it starts.

    Raises:
        BusyError: another program is at work there; with auto-resume also the same command.
        OutputError: the folder cannot be made.
    """
    saver = None
    if cfg.checkpoint.enabled:
        keys = ("frequency", "keep_prev", "keep_last", "every_n_steps", "pack")
        saver = Checkpointer(cfg, logdir, **{key: cfg.checkpoint[key] for key in keys})
    if rank_zero_only.rank != 0:  # the first process has locked it for all
        yield Run(resume, build_loggers(cfg, logdir, resume.path, resume.wandb_run_id), saver)
        return
    made = _missing(Path(logdir))
    try:
        Path(logdir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"the folder '{logdir}' cannot be made ({error.strerror})"
        raise ConfigError(f"checkpoint.dir: {reason}") from error
    # one after the other, so that of two equal commands the second one sees the first one's folder
    with one_at_a_time(logdir):
        if resume == Resume():
            resume = find_resume(cfg, logdir)
        if resume.path is not None:
            check_training_state(read_training_state(resume.path), resume.path)
        remove_empty(Path(logdir))
        again = resume.folder
        if again is not None and again.resolve().parent != Path(logdir).resolve():
            again = None
        loggers = build_loggers(cfg, logdir, resume.path, resume.wandb_run_id, again)
        csv = next(logger for logger in loggers if isinstance(logger, CSVMetrics))
        lock = FolderLock(Path(logdir) / csv.version)
        lock.acquire()
    run = Run(resume, loggers, saver)
    try:
        if saver is not None and not resume.finished:
            saver.begin(csv.version)
        yield run
    finally:
        lock.release()
        if not run.begun and resume == Resume():  # a mistake that was found before training
            with suppress(OSError):
                _undo(lock.folder, made)


def _missing(folder: Path) -> list[Path]:
    """`folder` and its parents that do not exist, the innermost first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def _undo(folder: Path, made: list[Path]) -> None:
    """Remove the folder of a run that never began, and what was made around it."""
    ours = {"args.json", LOCK, RECORD}
    if {path.name for path in folder.iterdir()} <= ours:
        shutil.rmtree(folder)
    for parent in made:
        if all(path.name == LOCK for path in parent.iterdir()):
            shutil.rmtree(parent)


def announce(resume: Resume) -> None:
    """Say what the run goes on from."""
    if resume.path is None:
        return
    if resume.finished:
        print(f"{resume.path} is of a finished run: nothing is left to train.", flush=True)
    else:
        print(f"Resuming from {resume.path}", flush=True)


# how torch begins to say that a model's or an optimizer's state is another one's
_OTHER_STATE = ("Error(s) in loading state_dict", "loaded state dict ")


@contextmanager
def explained(run: Run, trainer: Trainer) -> Iterator[None]:
    """Say what to do about a checkpoint that does not fit, a full disk, or being told to stop.

    Args:
        run: see `run_folder`.
        trainer: its trainer.
    """
    path = run.resume.path
    try:
        yield
    except AssertionError as error:
        if isinstance(error, SoloError) or "doesn't match model" not in str(error):
            raise
        raise ConfigError(
            f"{error} Set backbone.kwargs.img_size to the size of the images, or the crops to the "
            "encoder's size."
        ) from error
    except SystemExit as stop:
        _say_what_is_kept(run, trainer, stop)
        raise
    except CheckpointError as error:
        if path is None or str(path) in str(error):
            raise
        raise CheckpointError(f"{path} cannot be continued: {error}") from error
    except (SoloError, MemoryError, torch.OutOfMemoryError, OSError):
        raise
    except Exception as error:
        if path is None or run.stepped:  # the error is not the checkpoint's
            raise
        if str(error).startswith(_OTHER_STATE):
            lines = str(error).strip().splitlines()
            reason = lines[min(1, len(lines) - 1)].strip()
            raise CheckpointError(
                f"{path} cannot be continued: it is of another method, encoder or optimizer than "
                f"this configuration. Compare the args.json beside it. ({reason[:200]}...)"
            ) from error
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path} cannot be continued: its state is not one of this program with Lightning 2 "
            f"({type(error).__name__}: {reason}). Take another checkpoint, or start anew."
        ) from error


def _say_what_is_kept(run: Run, trainer: Trainer, stop: SystemExit) -> None:
    interrupted = isinstance(stop.__context__, KeyboardInterrupt)
    if not (interrupted or isinstance(stop, Stopped)) or not trainer.is_global_zero:
        return
    if interrupted:
        stop.code = 130
    why = stop.signal if isinstance(stop, Stopped) else "Ctrl-C"
    last = None if run.saver is None else run.saver.last_ckpt
    moment = f"Stopped by {why} in epoch {trainer.current_epoch}, step {trainer.global_step}."
    if last is None:
        print(f"\n{moment} No checkpoint was kept.", flush=True)
        return
    print(
        f"\n{moment} Kept: {last}\nTo go on: the same command with auto_resume.enabled=True, or "
        f"with resume_from_checkpoint='\"{last}\"'",
        flush=True,
    )
