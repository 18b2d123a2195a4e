# SPDX-License-Identifier: MIT
"""What sparsity and gates cost in accuracy on CIFAR-10, with equal epochs for every row.

    python benchmarks/gpu/quality.py --rows sparse --data FOLDER [--stages 10 40 160]

Stage after stage every row is trained from the start for so many epochs, with the schedule of that
length, then evaluated; a later stage says more. One seed: differences of a point or two say
nothing. Cut off, a training goes on from its last epoch. Packed encoders lie beside the runs.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from results import ROOT, Results

from scripts.experiments.leaderboard.cells import SETTINGS, Cell
from scripts.experiments.leaderboard.protocol import Protocol
from scripts.experiments.leaderboard.run import run_cell

DENSE = Cell("dense", "none", 0.0, 0)
ROWS = {
    "sparse": (
        "byol.yaml",
        (DENSE, *(Cell(m, "element", 0.9, 0) for m in ("synccp", "granet_ssl", "sd"))),
    ),
    "gating": (
        "vicreg.yaml",
        (DENSE, *(Cell(m, "gate", None, 0, 0.3) for m in ("vicreg_dual", "vicreg_gating"))),
    ),
}
KEPT = ("linear_acc1", "knn_acc1", "measured_sparsity", "macs_dense", "macs_effective", "bytes")


def board(recipe: str, epochs: int, tiny: bool) -> Protocol:
    """Recipes of this repository, resident on the device, without workers."""
    device = ["accelerator=cpu", "precision=32"] if tiny else ["precision=bf16-mixed"]
    shared = [*device, "devices=1", "sync_batchnorm=False", "strategy=auto"]
    shared += ["++enable_progress_bar=False"]
    width = ["++backbone.kwargs.width=4"] if tiny else []
    heads = ("proj_hidden_dim", "proj_output_dim", "pred_hidden_dim")
    small = [f"++method_kwargs.{head}=32" for head in heads[: 3 if "byol" in recipe else 2]]
    few = ["++limit_train_batches=12", "++limit_val_batches=1"] if tiny else []
    batch = 16 if tiny else 256
    workers = 0 if tiny else min(16, os.cpu_count() or 1)
    return Protocol(
        title="CIFAR-10",
        pretrain=f"scripts/pretrain/cifar/{recipe}",
        linear="scripts/linear/cifar/linear.yaml",
        dataset="cifar10",
        steps_per_epoch=50_000 // batch,
        overrides=(
            *(*shared, *width, *few, *(small if tiny else [])),
            *(f"max_epochs={epochs}", f"optimizer.batch_size={batch}"),
            *("data.format=resident", "data.num_workers=0", "++quality.enabled=False"),
        ),
        evaluation=(
            *(*shared, *width, *few, f"max_epochs={1 if tiny else 8}"),
            *(f"data.num_workers={workers}", "scheduler.name=warmup_cosine"),
        ),
        workers=workers,
        needs_data=True,
        resumes=True,
    )


def main() -> None:
    """Run what is not in the file yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", choices=ROWS, default="sparse")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--stages", type=int, nargs="*", default=[10, 40, 160])
    parser.add_argument("--tiny", action="store_true", help="a try on the CPU")
    args = parser.parse_args()
    out = args.out or ROOT / f"benchmarks/results/gpu_{args.rows}.json"
    results = Results(out)
    recipe, cells = ROWS[args.rows]
    for epochs in [4] if args.tiny else args.stages:
        for cell in cells:
            name = f"{cell.name} {epochs} epochs"
            if name not in results:
                results.add(
                    name, figures(board(recipe, epochs, args.tiny), cell, out, args, epochs)
                )
    for name, cell in results.cells.items():
        print(f"{name:40}linear {cell['linear_acc1']:6.2f}  kNN {cell['knn_acc1']:6.2f}")


def figures(
    protocol: Protocol, cell: Cell, out: Path, args: argparse.Namespace, epochs: int
) -> dict[str, Any]:
    """Train and evaluate one row."""
    folder = out.parent / "gpu_runs" / f"{args.rows}-{epochs}"
    if cell.method in SETTINGS:  # no search in a GPU's few minutes
        cell = replace(cell, setting="default")
    record = run_cell(protocol, cell, folder, data=args.data)
    peak = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None
    return {
        **{key: record[key] for key in KEPT},
        "epochs": epochs,
        "wall_seconds": record["wall_seconds"],
        "peak_device_mb": peak,
    }


if __name__ == "__main__":
    main()
