# SPDX-License-Identifier: MIT
"""Where runs of rows lie, which checkpoint a row starts from, and words of their commands."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from scripts.experiments.programs import ROOT, newest
from scripts.experiments.tables.rows import Evaluation, Row
from solo.errors import ConfigError, DataError

UNKNOWN = "CHECKPOINT"  # stands for the file of a training that has not been done yet


@dataclass(frozen=True)
class Options:
    """How rows are run.

    Attributes:
        folder: where everything of this table, data set and scale goes.
        images: folder with `train` and `val`; None = where the recipe says.
        training: further `key=value` for trainings; those of `sparse` or `gating` for rows with a
            method only. Those about encoder, data and hardware hold for evaluations too.
        linear: further `key=value` for linear evaluations and fine-tunings.
        checkpoint: file that is fine-tuned or evaluated; None = that of the row it comes from.
        seed: of this run of the rows; None = the recipe's.
    """

    folder: Path
    images: Path | None = None
    training: tuple[str, ...] = ()
    linear: tuple[str, ...] = ()
    checkpoint: Path | None = None
    seed: int | None = None

    @property
    def seeded(self) -> list[str]:
        """Override of the seed, if one is asked for."""
        return [] if self.seed is None else [f"++seed={self.seed}"]

    def name(self, row: Row) -> str:
        """Of a run: the row's, and its seed."""
        return row.name if self.seed is None else f"{row.name}-seed-{self.seed}"

    def path(self, row: Row) -> Path:
        """Folder of a run."""
        folder = self.folder / row.name
        return folder if self.seed is None else folder / f"seed-{self.seed}"


def training_folder(row: Row, options: Options) -> Path:
    """Where a row's training writes."""
    return options.path(row) / "train"


def linear_folder(row: Row, options: Options, evaluation: str = "online") -> Path:
    """Where an evaluation by `main_linear.py` writes."""
    return options.path(row) / f"linear-{evaluation}"


def log_name(row: Row, options: Options, evaluation: Evaluation) -> str:
    """Of the job, and so of the file with what it printed."""
    return f"{options.name(row)}-{evaluation.kind}-{evaluation.name}"


def checkpoint(row: Row, options: Options) -> Path:
    """The newest checkpoint of a row's training, or that of the row whose encoder it evaluates.

    Raises:
        DataError: there is none.
    """
    if row.kind != "evaluation":
        return newest(training_folder(row, options), "*/*/*.ckpt")
    found = source_of(row, options)
    if found == UNKNOWN:
        raise DataError(f"{row.name}: there is no checkpoint of {row.source} yet.")
    return Path(found)


def source_of(row: Row, options: Options) -> Path | str:
    """The checkpoint to start from: given, or that of the row which the paper takes it from."""
    if options.checkpoint is not None:
        return options.checkpoint
    table, name = (row.source or "").split("/")
    folder = options.folder.parent / table / name
    if options.seed is not None:
        folder /= f"seed-{options.seed}"
    try:
        return newest(folder / "train", "*/*/*.ckpt")
    except DataError:
        return UNKNOWN


def require_source(row: Row, options: Options) -> None:
    """Raise ConfigError if a fine-tuning or an evaluation has nothing to start from."""
    if row.source is not None and source_of(row, options) == UNKNOWN:
        table, name = row.source.split("/")
        table, _, dataset = table.rpartition("-")
        seed = "" if options.seed is None else f" --seeds {options.seed}"
        does = "evaluates" if row.kind == "evaluation" else "fine-tunes"
        raise ConfigError(
            f"{row.name} {does} the encoder of {table}'s row {name}, and there is no such run "
            f"in {options.folder.parent}. Run scripts/{row.section}/{dataset}/{table}.sh "
            f"{name}{seed} first, or give its checkpoint with --checkpoint FILE."
        )


def program(*words: str) -> tuple[str, ...]:
    """Interpreter and program; LAUNCHER, such as `torchrun --nproc_per_node 4`, stands before.

    kNN runs in one process.
    """
    file = words[0]
    given = [] if file == "main_knn.py" else shlex.split(os.environ.get("LAUNCHER", ""))
    launcher = given or [sys.executable]
    return (*launcher, *((str(ROOT / file),) if file.endswith(".py") else words))


def config(recipe: str) -> tuple[str, ...]:
    """Words that name a recipe to a program."""
    file = file_of(recipe)
    return "--config-path", str(file.parent), "--config-name", file.name


def file_of(recipe: str) -> Path:
    """The YAML file of a recipe."""
    return ROOT / "scripts" / f"{recipe}.yaml"


def data_of(row: Row, options: Options) -> list[str]:
    """Overrides of `data`: an encoder of ImageNet takes CIFAR as images of 224 pixels."""
    found = [f"data.dataset={row.dataset}"] if row.kind != "finetune" else []
    if options.images is not None:
        found += [f"data.{part}_path='{options.images / part}'" for part in ("train", "val")]
    return found
