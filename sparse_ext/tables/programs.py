# SPDX-License-Identifier: MIT
"""From a row to the programs that produce it, as jobs: training, then its evaluation."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from solo.errors import ConfigError, DataError
from sparse_ext.quickstart.jobs import Job
from sparse_ext.quickstart.programs import ROOT, epochs, fingerprint, max_epochs, newest
from sparse_ext.tables.rows import Row

SHARED = ("backbone.", "data.", "accelerator=", "devices=", "precision=", "strategy=", "num_nodes=")
UNKNOWN = "CHECKPOINT"  # stands for the file of a training that has not been done yet
PROGRAMS = {
    "ssl": ("main_pretrain.py",),
    "finetune": ("main_linear.py",),
    "supervised": ("-m", "sparse_ext.tables.supervised"),
}


@dataclass(frozen=True)
class Options:
    """How rows are run.

    Attributes:
        folder: where everything of this table, data set and scale goes.
        images: folder with `train` and `val`; None = where the recipe says.
        training: further `key=value` for trainings; those of `sparse` for sparse rows only. Those
            about encoder, data and hardware hold for the evaluation too.
        linear: further `key=value` for linear evaluations.
        checkpoint: file that is fine-tuned; None = that of the row it comes from.
    """

    folder: Path
    images: Path | None = None
    training: tuple[str, ...] = ()
    linear: tuple[str, ...] = ()
    checkpoint: Path | None = None


def jobs(rows: Sequence[Row], options: Options) -> list[Job]:
    """All programs of these rows, trainings first."""
    trained = [_training(row, options) for row in rows]
    evaluated = [
        _linear(row, options, encoder) for row in rows if row.linear for encoder in row.encoders
    ]
    return trained + evaluated


def training_folder(row: Row, options: Options) -> Path:
    """Where a row's training writes."""
    return options.folder / row.name / "train"


def linear_folder(row: Row, options: Options, encoder: str = "online") -> Path:
    """Where the linear evaluation of an encoder writes."""
    return options.folder / row.name / f"linear-{encoder}"


def checkpoint(row: Row, options: Options) -> Path:
    """The newest checkpoint of a row's training.

    Raises:
        DataError: there is none.
    """
    return newest(training_folder(row, options), "*/*/*.ckpt")


def shown(job: Job) -> str:
    """A job's command for a terminal; a checkpoint that is not there yet as CHECKPOINT."""
    return shlex.join(str(part) for part in job.command())


def _training(row: Row, options: Options) -> Job:
    dense = row.method is None
    own = [
        text for text in options.training if not (dense and text.lstrip("+").startswith("sparse"))
    ]
    base = (
        *_program(*PROGRAMS[row.kind]),
        *_config(row.recipe),
        f"name={row.table}-{row.name}",
        *_data(row, options),
        *row.overrides,
        f"checkpoint.dir='{training_folder(row, options)}'",
        *own,
    )

    def command() -> tuple:
        if row.kind != "finetune":
            return base
        return (*base, f"pretrained_feature_extractor='{_source(row, options)}'")

    return Job(
        name=f"{row.name}-train",
        title=f"{row.name}: {'pretraining' if row.kind == 'ssl' else 'training'}",
        command=command,
        fingerprint=fingerprint((*base, options.checkpoint)),
        progress=epochs(max_epochs(_file(row.recipe), (*row.overrides, *own))),
    )


def _linear(row: Row, options: Options, encoder: str) -> Job:
    own = tuple(text for text in options.training if text.lstrip("+").startswith(SHARED))
    base = (
        *_program("main_linear.py"),
        *_config(row.linear or ""),
        f"name={row.table}-{row.name}-linear",
        *_data(row, options),
        f"checkpoint.dir='{linear_folder(row, options, encoder)}'",
        *([] if encoder == "online" else [f"eval_encoder={encoder}"]),
        *own,
        *options.linear,
    )

    def command() -> tuple:
        try:
            path: object = checkpoint(row, options)
        except DataError:
            path = UNKNOWN
        return (*base, f"pretrained_feature_extractor='{path}'")

    return Job(
        name=f"{row.name}-linear-{encoder}",
        title=f"{row.name}: linear evaluation ({encoder})",
        command=command,
        fingerprint=fingerprint((*base, row.overrides, options.training)),
        after=(f"{row.name}-train",),
        progress=epochs(max_epochs(_file(row.linear or ""), options.linear)),
    )


def _source(row: Row, options: Options) -> Path | str:
    """The checkpoint to fine-tune: given, or that of the row which the paper takes it from."""
    if options.checkpoint is not None:
        return options.checkpoint
    table, name = (row.source or "").split("/")
    folder = options.folder.parent / f"{table}-imagenet" / name / "train"
    try:
        return newest(folder, "*/*/*.ckpt")
    except DataError:
        return UNKNOWN


def require_source(row: Row, options: Options) -> None:
    """Raise ConfigError if a fine-tuning has nothing to start from."""
    if row.kind == "finetune" and _source(row, options) == UNKNOWN:
        table, name = (row.source or "").split("/")
        raise ConfigError(
            f"{row.name} fine-tunes the encoder of {table}'s row {name}, and there is no such run "
            f"in {options.folder.parent}. Run scripts/sparse/imagenet/{table}.sh {name} first, or "
            f"give its checkpoint with --checkpoint FILE."
        )


def _program(*program: str) -> tuple[str, ...]:
    """Interpreter and program; LAUNCHER, such as `torchrun --nproc_per_node 4`, stands before."""
    launcher = shlex.split(os.environ.get("LAUNCHER", "")) or [sys.executable]
    file = program[0]
    return (*launcher, *((str(ROOT / file),) if file.endswith(".py") else program))


def _config(recipe: str) -> tuple[str, ...]:
    file = _file(recipe)
    return "--config-path", str(file.parent), "--config-name", file.name


def _file(recipe: str) -> Path:
    return ROOT / "scripts" / f"{recipe}.yaml"


def _data(row: Row, options: Options) -> list[str]:
    """Overrides of `data`: an encoder of ImageNet takes CIFAR as images of 224 pixels."""
    found = [f"data.dataset={row.dataset}"] if row.kind != "finetune" else []
    if options.images is not None:
        found += [f"data.{part}_path='{options.images / part}'" for part in ("train", "val")]
    return found
