# SPDX-License-Identifier: MIT
"""The evaluations of a row's encoder as jobs: linear, fine-tuning, nearest neighbour."""

from __future__ import annotations

from pathlib import Path

from scripts.experiments.jobs import Job
from scripts.experiments.programs import epochs, fingerprint, max_epochs
from scripts.experiments.tables.rows import Evaluation, Row
from scripts.experiments.tables.runs import (
    UNKNOWN,
    Options,
    checkpoint,
    config,
    data_of,
    file_of,
    linear_folder,
    log_name,
    program,
)
from solo.errors import DataError

SHARED = ("backbone.", "data.", "accelerator=", "devices=", "precision=", "strategy=", "num_nodes=")
TITLES = {
    "linear": "linear evaluation",
    "finetune": "fine-tuning",
    "knn": "1-nearest-neighbour evaluation",
}


def evaluation_job(row: Row, options: Options, evaluation: Evaluation) -> Job:
    """One evaluation; it starts when the row's training is done."""
    base = (_knn if evaluation.kind == "knn" else _linear)(row, options, evaluation)

    def command() -> tuple:
        try:
            path: object = checkpoint(row, options)
        except DataError:
            path = UNKNOWN
        if evaluation.kind == "knn":
            folder = path.parent if isinstance(path, Path) else path
            return (*base, "--pretrained_checkpoint_dir", folder)
        return (*base, f"pretrained_feature_extractor='{path}'")

    overrides = (*evaluation.overrides, *options.linear)
    known = evaluation.kind != "knn"
    return Job(
        name=log_name(row, options, evaluation),
        title=f"{options.name(row)}: {TITLES[evaluation.kind]} ({evaluation.name})",
        command=command,
        fingerprint=fingerprint((*base, row.overrides, options.training, options.checkpoint)),
        after=() if row.kind == "evaluation" else (f"{options.name(row)}-train",),
        progress=epochs(max_epochs(file_of(evaluation.recipe), overrides)) if known else _silent,
    )


def _silent(line: str) -> None:
    """kNN says nothing on its way."""


def _linear(row: Row, options: Options, evaluation: Evaluation) -> tuple:
    given = (*row.overrides, *options.training)
    own = tuple(text for text in given if text.lstrip("+").startswith(SHARED))
    branch = [] if evaluation.branch is None else [f"+gating.eval={evaluation.branch}"]
    return (
        *program("main_linear.py"),
        *config(evaluation.recipe),
        f"name={row.table}-{row.name}-{evaluation.kind}",
        *evaluation.overrides,
        *data_of(row, options),
        f"checkpoint.dir='{linear_folder(row, options, evaluation.name)}'",
        *([] if evaluation.encoder == "online" else [f"eval_encoder={evaluation.encoder}"]),
        *(branch if row.method is not None else []),
        *options.seeded,
        *own,
        *options.linear,
    )


def _knn(row: Row, options: Options, evaluation: Evaluation) -> tuple:
    """k = 1, Euclidean distance, images without augmentation (section 13.4)."""
    folders = {"train_path": "datasets", "val_path": "datasets"}
    if options.images is not None:
        folders = {f"{part}_path": str(options.images / part) for part in ("train", "val")}
    for text in options.training:
        key, _, value = text.lstrip("+").partition("=")
        if key.removeprefix("data.") in folders:
            folders[key.removeprefix("data.")] = value.strip("'\"")
    branch = evaluation.branch if row.method is not None else None
    return (
        *program("main_knn.py"),
        *("--dataset", row.dataset, "--k", "1", "--distance_function", "euclidean"),
        *("--train_data_path", folders["train_path"], "--val_data_path", folders["val_path"]),
        *("--batch_size", "256", "--num_workers", "4" if row.images is None else "0"),
        *("--eval_encoder", evaluation.encoder),
        *([] if branch is None else ["--gating_eval", branch]),
    )
