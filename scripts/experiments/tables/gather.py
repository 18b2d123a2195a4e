# SPDX-License-Identifier: MIT
"""Finished runs of a table as figures, measured from their files; mean and deviation of seeds."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.experiments.tables.rows import KINDS, Evaluation, Row
from scripts.experiments.tables.runs import Options, checkpoint, linear_folder, log_name
from solo.errors import DataError

if TYPE_CHECKING:
    from sparse_ext.report import RunLog

WIDTH = 64  # of the paper's ResNets
SMALL = "small-scale run"
# of what an evaluation measured on its images, for the table
GATES = (
    *("flops_reduction", "macs_effective", "times_fewer_macs", "times_fewer_macs_gated"),
    "eta",
)


def collect(rows: list[Row], options: Options) -> list[dict[str, Any]]:
    """One flat dictionary per row, in order; only names and printed figures where none is done.

    Several seeds give means, `<figure>_std` (sample deviation) and `runs`.
    """
    found = []
    for row in rows:
        figures: dict[str, Any] = {"row": row.name, "method": row.method or "dense"}
        runs = [_measured(row, run, path) for run, path in finished(row, options)]
        figures |= aggregate(runs) if runs else {"label": "not run"}
        figures |= {f"paper_{key}": value for key, value in row.paper.items()}
        found.append(figures | ({"note": row.note} if row.note else {}))
    return found


def finished(row: Row, options: Options) -> list[tuple[Options, Path]]:
    """Every run of a row that left a checkpoint: without a seed, and by seed."""
    found = []
    for seed in _seeds(row, options):
        run = replace(options, seed=seed)
        try:
            found.append((run, checkpoint(row, run)))
        except DataError:
            continue
    return found


def _seeds(row: Row, options: Options) -> list[int | None]:
    """Seeds that left a folder or a log; kNN of another row's encoder leaves a log only."""
    logs = (options.folder / "logs").glob(f"{row.name}-*.log")
    names = [path.stem.removeprefix(f"{row.name}-") for path in logs]
    folders = (path.name for path in (options.folder / row.name).glob("seed-*"))
    seeds = {int(m[1]) for name in (*names, *folders) if (m := re.match(r"seed-(\d+)", name))}
    started = any(name.startswith(KINDS) for name in names)
    return [*([None] if started or row.kind != "evaluation" else []), *sorted(seeds)]


def aggregate(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means of the numbers of several runs, with deviations; everything else is the first run's."""
    if len(runs) == 1:
        return dict(runs[0])
    merged: dict[str, Any] = {**runs[0], "runs": len(runs)}
    for key, value in runs[0].items():
        values = [run[key] for run in runs if key in run]
        if isinstance(value, (int, float)) and len(values) > 1:
            merged[key] = statistics.fmean(values)
            merged[f"{key}_std"] = statistics.stdev(values)
    return merged


def _measured(row: Row, options: Options, path: Path) -> dict[str, Any]:
    from sparse_ext.report import RunLog

    log = RunLog(path.parent)
    figures: dict[str, Any] = {"label": label(row, log), "checkpoint": str(path)}
    figures |= _evaluated(row, options, log)
    if row.section == "gating":
        return figures | {"macs_dense": _macs_dense(path)}
    return figures | _costs(path, log) | _training_costs(row, path)


def _training_costs(row: Row, path: Path) -> dict[str, float]:
    from sparse_ext.cost.conventions import CONVENTIONS

    if row.method is None:
        return {f"training_cost_{name}": 1.0 for name in CONVENTIONS}
    from sparse_ext.cost.of_checkpoint import training_cost

    return {f"training_cost_{k}": v for k, v in training_cost(path).items()}


def label(row: Row, log: RunLog) -> str:
    """In which respects this is not the paper's run; empty if it is, as far as files say."""
    args, differences = log.args, []
    epochs = args.get("max_epochs")
    if epochs != row.expected["epochs"]:
        differences.append(f"{epochs} epochs instead of {row.expected['epochs']}")
    backbone = args.get("backbone") or {}
    if backbone.get("name") != row.expected["backbone"]:
        differences.append(f"{backbone.get('name')} instead of {row.expected['backbone']}")
    width = (backbone.get("kwargs") or {}).get("width", WIDTH)
    usual = row.expected.get("width", WIDTH)
    if width != usual:
        differences.append(f"width {width} instead of {usual}")
    seen = images_per_epoch(log)
    if seen is not None and seen < 0.9 * row.expected["images"]:
        differences.append(f"{seen:,} of {row.expected['images']:,} training images")
    return f"{SMALL}: {', '.join(differences)}" if differences else ""


def images_per_epoch(log: RunLog) -> int | None:
    """Training images of one epoch, from the steps that it took; None if that is not known."""
    batch = (log.args.get("optimizer") or {}).get("batch_size")
    if batch is None or not any(row.get("step") for row in log.rows):
        return None
    devices = log.args.get("devices", 1)
    processes = len(devices) if isinstance(devices, list) else max(1, int(devices))
    processes *= int(log.args.get("num_nodes") or 1)
    accumulated = int(log.args.get("accumulate_grad_batches") or 1)
    return round(log.steps_per_epoch * batch * processes * accumulated)


def _evaluated(row: Row, options: Options, log: RunLog) -> dict[str, float]:
    """Accuracies, and what gates did on the images of each evaluation, by its prefix."""
    if row.kind in ("finetune", "supervised"):
        return {"acc": log.series("val_acc1").last} if "val_acc1" in log else {}
    found: dict[str, float] = {}
    for evaluation in row.evaluations:
        measure = _knn if evaluation.kind == "knn" else _linear
        figures = measure(row, options, evaluation)
        found |= {f"{evaluation.prefix}{name}": value for name, value in figures.items()}
    return found


def _linear(row: Row, options: Options, evaluation: Evaluation) -> dict[str, float]:
    from sparse_ext.report import RunLog

    files = linear_folder(row, options, evaluation.name).glob("*/*/metrics.csv")
    newest = max(files, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        return {}
    log = RunLog(newest.parent)
    gates = {name: s.last for name in GATES if (s := log.get(f"encoder/{name}")) is not None}
    return {"acc": round(log.series("val_acc1").last, 3), **gates}


def _knn(row: Row, options: Options, evaluation: Evaluation) -> dict[str, float]:
    """From what the program printed."""
    path = options.folder / "logs" / f"{log_name(row, options, evaluation)}.log"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    accuracies = re.findall(r"^Result: acc@1=([\d.e+-]+),", text, re.MULTILINE)
    gates = dict(re.findall(r"^(\w+): ([\d.e+-]+) \(validation images\)$", text, re.MULTILINE))
    if not accuracies:
        return {}
    figures = {name: float(gates[name]) for name in GATES if name in gates}
    return {"acc": round(float(accuracies[-1]), 3), **figures}


def _macs_dense(path: Path) -> int:
    """Of the encoder without its gates, for an image of the size that evaluation shows to it."""
    from solo.checkpoints import load_run
    from solo.data.shown import input_size
    from sparse_ext.gating.encoder import gating_of, trace

    backbone, args = load_run(path)
    if gating_of(backbone) is not None:
        return trace(backbone, input_size(args)).macs_dense
    from sparse_ext.cost import count

    return count(backbone, input_size(args)).macs_dense


def _costs(path: Path, log: RunLog) -> dict[str, Any]:
    """Sparsities, MACs and memory of the encoders in a checkpoint."""
    from solo.checkpoints import load_run
    from solo.data.shown import input_size
    from sparse_ext.cost import count, memory
    from sparse_ext.cost.of_checkpoint import granularity

    backbone, args = load_run(path)
    table = count(backbone, input_size(args))
    size = memory(table, granularity(args))
    figures: dict[str, Any] = {
        "sparsity_online": table.prunable.sparsity,
        "sparsity_online_whole_encoder": table.sparsity,
        "macs_dense": table.macs_dense,
        "macs_effective": round(table.macs_effective),
        "inference_cost": table.mac_ratio,
        "megabytes": size.kept / 1e6,
        "megabytes_with_index": size.total / 1e6,
    }
    if "momentum" in log.args and "method" in log.args:
        momentum, _ = load_run(path, "momentum")
        figures["sparsity_momentum"] = count(momentum, input_size(args)).prunable.sparsity
    return figures
