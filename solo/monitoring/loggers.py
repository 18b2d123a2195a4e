# SPDX-License-Identifier: MIT
"""Where metrics go: always a CSV file beside args.json; wandb and TensorBoard when asked."""

from __future__ import annotations

import csv
import math
import re
from argparse import Namespace
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from solo.errors import ConfigError, OutputError
from solo.files.lock import LOCK, RECORD, FolderLock
from solo.files.whole import SUFFIX, refusal, whole_file
from solo.monitoring.profiling import LOGGING, section

FILE = "metrics.csv"


def next_version(logdir: str | Path) -> str:
    """The lowest number that names no folder in `logdir` yet: "0", "1", ...; claims nothing."""
    logdir = Path(logdir)
    taken = {int(p.name) for p in logdir.iterdir() if p.name.isdigit()} if logdir.is_dir() else ()
    return str(max(taken, default=-1) + 1)


def _left_over(logdir: Path) -> str | None:
    """A folder that a run has claimed and was killed before it wrote anything into it."""
    for path in sorted(logdir.iterdir()):
        if path.name.isdigit() and (path / LOCK).is_file():
            wrote = [p for p in path.iterdir() if p.name not in (LOCK, RECORD)]
            if all(p.name.endswith(SUFFIX) for p in wrote) and FolderLock(path).free():
                return path.name
    return None


def remove_empty(logdir: Path) -> None:
    """Remove folders of runs that were killed before anything was in them.

    For one program at a time: a moment later there is the lock of the run.
    """
    for path in logdir.iterdir():
        if path.name.isdigit():
            with suppress(OSError):  # it is not empty, or no folder
                path.rmdir()


class CSVMetrics(Logger):
    """Appends every logged row to `<logdir>/<version>/metrics.csv`, surviving kills and resumes.

    One row per call, columns in order of appearance (`step` and `epoch` as Lightning gives them),
    empty where a row has no value. New columns rewrite the file through a temporary one.

    Args:
        logdir: folder of the method, such as `trained_models/byol`.
        version: name of the run's folder; the next free number when None.
        start_from: metrics.csv of the run that is resumed; `keep_before` decides what is taken.
    """

    def __init__(
        self, logdir: str | Path, version: str | None = None, start_from: Path | None = None
    ):
        super().__init__()
        self.logdir = Path(logdir)
        self.start_from = start_from
        self._version = version
        self._columns: list[str] = []
        self._pending: list[dict[str, Any]] = []

    @property
    def name(self) -> str:
        """Name of the folder that holds the runs of the method."""
        return self.logdir.name

    @property
    def version(self) -> str:
        """The folder of the run; the first call by rank 0 creates it, so that two runs differ."""
        if self._version is None:
            self._version = self._claim() if rank_zero_only.rank == 0 else next_version(self.logdir)
        return self._version

    @property
    def path(self) -> Path:
        """Path of the CSV file that the metrics go to."""
        return self.logdir / self.version / FILE

    def _claim(self) -> str:
        try:
            self.logdir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"checkpoint.dir: the folder '{self.logdir}' cannot be made ({error.strerror})"
            ) from error
        if (left := _left_over(self.logdir)) is not None:
            return left
        while True:
            version = next_version(self.logdir)
            try:
                (self.logdir / version).mkdir()
                return version
            except FileExistsError:  # another run was faster
                continue

    @rank_zero_only
    def keep_before(self, step: int) -> None:
        """Start the file with the rows of `start_from` logged before `step`; drop later ones.

        A run that was killed had logged steps after its last checkpoint; they are repeated.
        """
        if self.start_from is None or not Path(self.start_from).is_file():
            return
        self._columns, rows, damaged = _read_rows(self.start_from)
        if damaged:
            print(
                f"warning: {self.start_from}: {damaged} damaged rows are left out; what they held "
                "is in no other file",
                flush=True,
            )
        self._rewrite([row for row in rows if int(float(row["step"])) < step])

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Queue one row; it is written at the next `save`."""
        with section(LOGGING):
            row = {k: getattr(value, "item", lambda v=value: v)() for k, value in metrics.items()}
            self._pending.append({**row, "step": step})
            if len(self._pending) >= 100:
                self.save()

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args, **kwargs) -> None:
        """Nothing to do: args.json holds the configuration."""

    @rank_zero_only
    def save(self) -> None:
        """Write the queued rows to the disk."""
        if not self._pending:
            return
        rows, self._pending = self._pending, []
        new = [
            key for key in dict.fromkeys(k for row in rows for k in row) if key not in self._columns
        ]
        if new:
            old = self._read()
            self._columns += new
            self._rewrite([*old, *rows])
            return
        try:
            with open(self.path, "a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._columns).writerows(rows)
        except OSError as error:
            raise OutputError(f"'{self.path}' cannot be written: {refusal(error)}") from error

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is left at the end of the run, however it ends."""
        self.save()

    def _read(self) -> list[dict[str, str]]:
        if not self._columns or not self.path.is_file():
            return []
        with open(self.path, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        with (
            whole_file(self.path) as partial,
            open(partial, "w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)


def csv_of(loggers: Iterable[Any]) -> CSVMetrics:
    """The logger of a run, among all of its, that writes `metrics.csv`."""
    return next(logger for logger in loggers if isinstance(logger, CSVMetrics))


def last_values(path: Path) -> dict[str, float]:
    """The last value of every column of a metrics file; nothing where there is no file."""
    _, rows, _ = _read_rows(path) if Path(path).is_file() else ([], [], 0)
    return {key: _number(value) for row in rows for key, value in row.items() if value}


def _read_rows(path: Path) -> tuple[list[str], list[dict[str, str]], int]:
    """Columns and rows of a metrics file, and how many rows were no rows of its."""
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace").replace("\0", "\ufffd")
        reader = csv.DictReader(text.splitlines(), strict=False)
        columns, found = list(reader.fieldnames or []), list(reader)
    except (OSError, csv.Error):
        return [], [], 1
    rows = [row for row in found if _is_row(row)]
    return columns, rows, len(found) - len(rows)


def _number(text: str) -> float:
    return float({"True": "1", "False": "0"}.get(text, text))


def _is_row(row: Mapping[str | None, Any]) -> bool:
    if None in row or None in row.values():  # too long, too short
        return False
    try:
        for value in filter(None, row.values()):
            _number(value)
        return math.isfinite(float(row["step"]))
    except (KeyError, ValueError):
        return False


def build_loggers(
    cfg: DictConfig,
    logdir: Path,
    resume: Path | None = None,
    wandb_run_id: str | None = None,
    folder: Path | None = None,
) -> list[Logger]:
    """The loggers of a run. The first one names the run's folder (wandb's id, or a number).

    Args:
        cfg: parsed configuration.
        logdir: `<checkpoint.dir>/<method>`.
        resume: checkpoint that the run continues; its folder is used again if it lies in `logdir`
            and holds no newer one.
        wandb_run_id: id of the wandb run to continue.
        folder: of a run that goes on in its own folder, in `logdir`, whatever is there.
    """
    version = None if folder is None else Path(folder).name
    if resume is not None and version is None:
        run = Path(resume).resolve().parent
        # Going back to an older checkpoint must not overwrite what came after it.
        newest = last_checkpoint(run)
        if run.parent == Path(logdir).resolve() and newest and newest.samefile(resume):
            version = run.name
    loggers: list[Logger] = []
    if cfg.wandb.enabled:
        loggers.append(_wandb(cfg, wandb_run_id))
        version = str(loggers[0].version) if rank_zero_only.rank == 0 else version
    start = None if resume is None else Path(resume).parent / FILE
    loggers.append(CSVMetrics(logdir, version, start))
    if cfg.tensorboard.enabled:
        from lightning.pytorch.loggers import TensorBoardLogger

        loggers.append(TensorBoardLogger(logdir, name="", version=loggers[-1].version))
    return loggers


def _wandb(cfg: DictConfig, run_id: str | None) -> Logger:
    from lightning.pytorch.loggers import WandbLogger

    if run_id is not None and run_id.isdigit():  # the folder of a run without wandb
        run_id = None
    logger = WandbLogger(
        name=cfg.name,
        project=cfg.wandb.project,
        entity=cfg.wandb.entity,
        offline=cfg.wandb.offline,
        resume="allow" if run_id else None,
        id=run_id,
    )
    logger.log_hyperparams(OmegaConf.to_container(cfg, resolve=True))
    return logger


def checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoints of a run's folder, oldest first."""
    return _by_age(folder, "*.ckpt")


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a run's folder, None when there is none."""
    return next(reversed(checkpoints(folder)), None)


def last_weights(folder: Path) -> Path | None:
    """What an evaluation of a folder loads: its newest checkpoint, or an exported encoder."""
    return last_checkpoint(folder) or next(reversed(_by_age(folder, "*.safetensors")), None)


def _by_age(folder: str | Path, pattern: str) -> list[Path]:
    """By time of writing; names in their natural order where a copy has given all one time."""
    found = []
    for path in Path(folder).glob(pattern):
        with suppress(OSError):  # gone by now, or a link to nowhere
            parts = re.split(r"(\d+)", path.name)
            natural = [(int(p), "") if p.isdigit() else (-1, p) for p in parts]
            found.append((path.stat().st_mtime_ns, natural, path))
    return [path for *_, path in sorted(found)]
