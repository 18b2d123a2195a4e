# SPDX-License-Identifier: MIT
"""From rows to the programs that produce them, as jobs: trainings, then evaluations."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace

from scripts.experiments.jobs import Job
from scripts.experiments.programs import epochs, fingerprint, max_epochs
from scripts.experiments.tables.evaluations import evaluation_job
from scripts.experiments.tables.rows import Row
from scripts.experiments.tables.runs import (
    Options,
    config,
    data_of,
    file_of,
    program,
    source_of,
    training_folder,
)

PROGRAMS = {
    "ssl": ("main_pretrain.py",),
    "finetune": ("main_linear.py",),
    "supervised": ("-m", "scripts.experiments.tables.supervised"),
}


def jobs(rows: Sequence[Row], options: Options, seeds: Sequence[int] = ()) -> list[Job]:
    """All programs of these rows, once for every seed, trainings first."""
    numbers: Sequence[int | None] = seeds or [options.seed]
    runs = [replace(options, seed=seed) for seed in numbers]
    pairs = [(row, run) for run in runs for row in rows]
    trained = [_training(row, run) for row, run in pairs if row.kind != "evaluation"]
    evaluated = [evaluation_job(row, run, one) for row, run in pairs for one in row.evaluations]
    return trained + evaluated


def shown(job: Job) -> str:
    """A job's command for a terminal; a checkpoint that is not there yet as CHECKPOINT."""
    return shlex.join(str(part) for part in job.command())


def _training(row: Row, options: Options) -> Job:
    dense = row.method is None
    section = row.section
    own = [
        text for text in options.training if not (dense and text.lstrip("+").startswith(section))
    ]
    base = (
        *program(*PROGRAMS[row.kind]),
        *config(row.recipe),
        f"name={row.table}-{row.name}",
        *data_of(row, options),
        *row.overrides,
        *options.seeded,
        f"checkpoint.dir='{training_folder(row, options)}'",
        *own,
    )

    def command() -> tuple:
        if row.kind != "finetune":
            return base
        return (*base, f"pretrained_feature_extractor='{source_of(row, options)}'")

    return Job(
        name=f"{options.name(row)}-train",
        title=f"{options.name(row)}: {'pretraining' if row.kind == 'ssl' else 'training'}",
        command=command,
        fingerprint=fingerprint((*base, options.checkpoint)),
        progress=epochs(max_epochs(file_of(row.recipe), (*row.overrides, *own))),
    )
