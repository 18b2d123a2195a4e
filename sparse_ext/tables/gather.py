# SPDX-License-Identifier: MIT
"""Finished runs of a table as figures, measured from their files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from solo.errors import DataError
from sparse_ext.tables.programs import Options, checkpoint, linear_folder
from sparse_ext.tables.rows import FIGURES, Row

if TYPE_CHECKING:
    from sparse_ext.report import RunLog

WIDTH = 64  # of the paper's ResNets
SMALL = "small-scale run"


def collect(rows: list[Row], options: Options) -> list[dict[str, Any]]:
    """One flat dictionary per row, in order; only names and printed figures where none is done."""
    found = []
    for row in rows:
        figures: dict[str, Any] = {"row": row.name, "method": row.method or "dense"}
        try:
            path = checkpoint(row, options)
        except DataError:
            figures["label"] = "not run"
        else:
            figures |= _measured(row, options, path)
        figures |= {f"paper_{key}": row.paper[key] for key in FIGURES if key in row.paper}
        found.append(figures | ({"note": row.note} if row.note else {}))
    return found


def _measured(row: Row, options: Options, path: Path) -> dict[str, Any]:
    from sparse_ext.cost.training import CONVENTIONS
    from sparse_ext.report import RunLog

    log = RunLog(path.parent)
    figures: dict[str, Any] = {"label": label(row, log), "checkpoint": str(path)}
    figures |= _accuracies(row, options, log) | _costs(path, log)
    ratios = {f"training_cost_{name}": 1.0 for name in CONVENTIONS}
    if row.method is not None:
        from sparse_ext.cost.checkpoint import training_cost

        ratios = {f"training_cost_{k}": v for k, v in training_cost(path).items()}
    return figures | ratios


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
    if width != WIDTH:
        differences.append(f"width {width} instead of {WIDTH}")
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


def _accuracies(row: Row, options: Options, log: RunLog) -> dict[str, float]:
    if row.kind != "ssl":
        return {"acc": log.series("val_acc1").last} if "val_acc1" in log else {}
    from sparse_ext.report import RunLog as Log

    found = {}
    for encoder in row.encoders:
        files = linear_folder(row, options, encoder).glob("*/*/metrics.csv")
        newest = max(files, key=lambda path: path.stat().st_mtime, default=None)
        if newest is not None:
            accuracy = Log(newest.parent).series("val_acc1").last
            found["acc" if encoder == "online" else f"{encoder}_acc"] = round(accuracy, 3)
    return found


def _costs(path: Path, log: RunLog) -> dict[str, Any]:
    """Sparsities, MACs and memory of the encoders in a checkpoint."""
    from sparse_ext.cost import count, memory
    from sparse_ext.cost.checkpoint import granularity, input_size, rebuild

    backbone, args = rebuild(path)
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
        momentum, _ = rebuild(path, "momentum")
        figures["sparsity_momentum"] = count(momentum, input_size(args)).prunable.sparsity
    return figures
