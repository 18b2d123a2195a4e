# SPDX-License-Identifier: MIT
"""What the element-wise kernel saves in a whole run: SyncCP from 30 % to 90 %, once with it.

    python benchmarks/whole_run.py [--precision bf16-mixed] [--recipe lejepa] [--width 64]
        [--batch 32] [--epochs 6] [--steps 30] [--seeds 0 1] [--score-every 5] [KEY=VALUE ...]

The same command of main_pretrain.py (by default LeJEPA on the embedded digits, ResNet-18), with
sparse.kernel=dense and sparse.kernel=auto in turns, one thread; dense in float32 besides, which all
ratios of this project's tables are to. Layers switch to the kernel one by
one as they become sparse enough: SyncCP's own schedule, unless KEY=VALUE changes it. What counts is
the whole program, with start, validation and the measuring of layers: by the wall clock, and by
seconds of the CPU, which leave out those in which other programs had it. The kernel itself is built
before. Accuracies are those of the run: of the online classifier and of the nearest neighbours on
the validation images. The last line is JSON: of each precision the seconds of the dense run over
those of the other one (`ratio`, by the CPU; `ratio_float32`: of the dense run in float32), of each
epoch its sparsity, layers with the kernel and seconds per step.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sparse_ext.report.timed import processor

ROOT = Path(__file__).resolve().parents[1]
RECIPES = str(ROOT / "scripts/pretrain/digits")
KERNELS = ("dense", "auto")
REFERENCE = "32"
LOGGED = {
    "sparsity": "sparse/online_sparsity",
    "layers": "sparse/kernel_layers",
    "seconds_per_step": "sparse/seconds_per_step",
}
ACCURACIES = {"linear": "val_acc1", "knn": "val_knn_acc1"}


def command(args: argparse.Namespace, precision: str, kernel: str, seed: int) -> list[str]:
    """The run, but for its folder."""
    return [
        *(sys.executable, str(ROOT / "main_pretrain.py")),
        *("--config-path", RECIPES, "--config-name", f"{args.recipe}.yaml"),
        f"optimizer.batch_size={args.batch}",
        *(f"backbone.kwargs.width={args.width}", f"max_epochs={args.epochs}"),
        *(f"++limit_train_batches={args.steps}", "++check_val_every_n_epoch=1"),
        *(f"precision={precision}", f"++seed={seed}", "++quality.enabled=False"),
        *("++knn_eval.enabled=True", "accelerator=cpu"),
        *("+sparse=synccp", "sparse.final=0.9", f"sparse.update_period={max(1, args.steps // 4)}"),
        *("sparse.drop_start=0.1", "sparse.regrow_after_ramp=False"),
        *(f"sparse.score_every={args.score_every}", f"sparse.kernel={kernel}", *args.more),
    ]


def timed(line: list[str], folder: Path) -> dict[str, Any]:
    """Run a command in `folder`; its seconds and what it logged."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    began = time.perf_counter()
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            [*line, f"checkpoint.dir={folder}"], cwd=ROOT, stdout=log, stderr=log, env=environment
        )
        _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit((folder / "log").read_text()[-4000:])
    found = {"cpu": used.ru_utime + used.ru_stime, "wall": time.perf_counter() - began}
    return found | logged(next(folder.glob("*/*/metrics.csv")))


def logged(path: Path) -> dict[str, Any]:
    """What a run's metrics.csv says of every epoch, and its last accuracies."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    epochs = {name: [float(r[k]) for r in rows if r.get(k)] for name, k in LOGGED.items()}
    last = {name: [float(r[k]) for r in rows if r.get(k)] for name, k in ACCURACIES.items()}
    return epochs | {name: values[-1] for name, values in last.items() if values}


def total(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds of all seeds."""
    return {clock: sum(run[clock] for run in runs) for clock in ("cpu", "wall")}


def compared(
    runs: dict[str, list[dict[str, Any]]], reference: list[dict[str, Any]]
) -> dict[str, Any]:
    """Ratios and accuracies of one precision, from the runs of each kernel in order of seeds.

    Args:
        runs: by kernel.
        reference: dense ones in float32.
    """
    totals = {kernel: total(found) for kernel, found in runs.items()}
    dense, auto = (totals[kernel] for kernel in KERNELS)
    accuracies = {
        name: {kernel: [run[name] for run in found] for kernel, found in runs.items()}
        for name in ACCURACIES
        if name in runs["dense"][0]
    }
    return {
        "ratio": round(dense["cpu"] / auto["cpu"], 2),
        "ratio_wall": round(dense["wall"] / auto["wall"], 2),
        "ratio_float32": round(total(reference)["cpu"] / auto["cpu"], 2),
        "ratio_float32_wall": round(total(reference)["wall"] / auto["wall"], 2),
        "seconds": {k: {c: round(s, 1) for c, s in t.items()} for k, t in totals.items()},
        **accuracies,
        "epochs": {kernel: {n: found[0][n] for n in LOGGED} for kernel, found in runs.items()},
    }


def main() -> None:
    """Run everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--precision", nargs="+", default=["bf16-mixed"])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--steps", type=int, default=30, help="per epoch")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--recipe", default="lejepa", help="of scripts/pretrain/digits")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--score-every", type=int, default=5)
    parser.add_argument("more", nargs="*", metavar="KEY=VALUE")
    args = parser.parse_args()
    build = "from sparse_ext.kernels.element.choice import wait; wait()"
    subprocess.run([sys.executable, "-c", build], cwd=ROOT, check=True)
    asked = [(precision, kernel) for precision in args.precision for kernel in KERNELS]
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for seed in args.seeds:
        for precision, kernel in dict.fromkeys([(REFERENCE, "dense"), *asked]):
            with tempfile.TemporaryDirectory() as folder:
                found = timed(command(args, precision, kernel, seed), Path(folder))
            runs.setdefault((precision, kernel), []).append(found)
            print(f"{precision} {kernel} seed {seed}: {found}", flush=True)
    result: dict[str, Any] = {"machine": processor()}
    for precision in args.precision:
        of_precision = {kernel: runs[precision, kernel] for kernel in KERNELS}
        result[precision] = compared(of_precision, runs[REFERENCE, "dense"])
        for name in ACCURACIES:
            for kernel, values in result[precision].get(name, {}).items():
                print(f"{precision} {kernel}: {name} {statistics.mean(values):.1f}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
