# SPDX-License-Identifier: MIT
"""One cell in one process: the programs of this repository, one after the other.

python -m scripts.experiments.leaderboard.run BOARD CELL FOLDER [--set KEY=VALUE ...] [--linear ...]

Pretrains, evaluates linearly and by nearest neighbours, measures, and writes `cell.json`.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import subprocess
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from scripts.experiments import programs
from scripts.experiments.leaderboard import results
from scripts.experiments.leaderboard.cells import FIXED, Cell, searches
from scripts.experiments.leaderboard.protocol import KNN, Protocol, chosen, protocol, run_folder
from solo.files.whole import write_json
from solo.programs.app import run_program

ACCURACIES = ("linear_acc1", "knn_acc1")
TWO_BRANCHES = ("vicreg_dual",)  # one training makes a gated and a dense network


def main(argv: Sequence[str] | None = None) -> None:
    """Run one cell."""
    parser = argparse.ArgumentParser(prog="leaderboard cell", description=__doc__)
    parser.add_argument("board")
    parser.add_argument("cell")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--linear", nargs="*", default=[], metavar="KEY=VALUE")
    args = parser.parse_args(argv)

    def task() -> None:
        cell = results.named(args.board, args.cell)
        run_cell(protocol(args.board), cell, args.folder, args.set, args.linear, args.data)

    run_program(task)


def run_cell(
    board: Protocol,
    cell: Cell,
    folder: Path,
    more: Sequence[str] = (),
    linear: Sequence[str] = (),
    data: Path | None = None,
    setting: str | None = None,
) -> dict[str, Any]:
    """Train and evaluate a cell.

    What an interrupted try has left of it is removed first, or gone on with where the board
    resumes; nobody knows then how long it took, and the times are None.

    Args:
        board: recipes.
        cell: what to train.
        folder: of the leaderboard; the cell's own is in `runs/`.
        more: further `key=value` for the pretraining.
        linear: further `key=value` for the linear evaluation.
        data: folder of the images, where the board needs one.
        setting: choice of `SETTINGS`; left out: the cell's, else what the search chose.
    """
    own = run_folder(folder, cell)
    if not board.resumes:
        shutil.rmtree(own, ignore_errors=True)
    own.mkdir(parents=True, exist_ok=True)
    resumed = any(own.glob("*/*/*.ckpt"))
    values, arguments = board.images(data)
    more, linear = (*values, *more), (*board.evaluation, *values, *linear)
    setting = setting or cell.setting or FIXED.get(cell.method)
    if setting is None:
        setting = chosen(results.read(folder), searches(cell.method))
    began = time.process_time(), time.monotonic()
    checkpoint, overrides = _pretrain(board, cell, own, setting, more)
    middle = time.process_time()
    figures: dict[str, Any] = {}
    for encoder in board.encoders:
        prefix = "" if encoder == "online" else f"{encoder}_"
        found = evaluate(board, checkpoint, own, encoder, linear, arguments)
        figures |= {f"{prefix}{name}": value for name, value in found.items()}
    if cell.method in TWO_BRANCHES:
        found = evaluate(board, checkpoint, own, "online", linear, arguments, "dense")
        figures |= {f"dense_branch_{name}": found[name] for name in ACCURACIES}
    record = {
        **results.identity(cell),
        **figures,
        **_measured(checkpoint, own, figures),
        "setting": setting,
        "overrides": [word for word in overrides if word not in values],  # not where images lie
        "recipe": board.fingerprint(cell),
        "seconds": None if resumed else round(middle - began[0], 1),
        "evaluation_seconds": round(time.process_time() - middle, 1),
        "wall_seconds": None if resumed else round(time.monotonic() - began[1], 1),
        **circumstances(),
    }
    write_json(own / "cell.json", record)
    return record


def _pretrain(
    board: Protocol, cell: Cell, own: Path, setting: str | None, more: Sequence[str]
) -> tuple[Path, tuple[str, ...]]:
    from solo.programs.pretrain import pretrain

    values = (*board.pretraining(cell, setting), *_start(cell, own), *more)
    cfg = programs.compose(board.pretrain, [*values, f"checkpoint.dir='{own}'"])
    pretrain(cfg)
    *older, newest = sorted(own.glob(f"{cfg.method}/*/*.ckpt"), key=lambda p: p.stat().st_mtime)
    for path in older:
        path.unlink()
    return newest, values


def _start(cell: Cell, own: Path) -> list[str]:
    """ASP prunes the trained dense network of the same seed."""
    if cell.method != "asp":
        return []
    dense = own.parent / Cell("dense", "none", 0.0, cell.seed).name
    return [f"sparse.dense_checkpoint='{programs.newest(dense, '*/*/*.ckpt')}'"]


def evaluate(
    board: Protocol,
    checkpoint: Path,
    own: Path,
    encoder: str,
    more: Sequence[str],
    images: Sequence[str],
    branch: str | None = None,
) -> dict[str, Any]:
    """Linear and kNN accuracy, and what gates have saved on the validation images.

    Args:
        board: recipes.
        checkpoint: what to evaluate.
        own: folder that the evaluation leaves its run in.
        encoder: `online` or `momentum`.
        more: further `key=value` for the linear evaluation.
        images: further arguments of `main_knn.py`.
        branch: of an encoder with two; None = the one that its configuration names.
    """
    from solo.args.knn import parse_args_knn
    from solo.programs.knn import knn
    from solo.programs.linear import linear

    which = encoder if branch is None else f"{encoder}-{branch}"
    values = [
        f"checkpoint.dir='{own / f'linear-{which}'}'",
        f"pretrained_feature_extractor='{checkpoint}'",
        f"++eval_encoder={encoder}",
        *([] if branch is None else [f"+gating.eval={branch}"]),
        *more,
    ]
    metrics = linear(programs.compose(board.linear, values)).callback_metrics
    arguments = ["--dataset", board.dataset, *KNN, *board.neighbours, *images]
    arguments += ["--batch_size", "256", "--num_workers", str(board.workers)]
    arguments += ["--pretrained_checkpoint_dir", str(checkpoint.parent), "--eval_encoder", encoder]
    arguments += [] if branch is None else ["--gating_eval", branch]
    neighbours = knn(parse_args_knn(arguments))[0]
    gates = {
        key.removeprefix("encoder/"): float(value)
        for key, value in metrics.items()
        if key in ("encoder/macs_effective", "encoder/macs_dense")
    }
    return {
        "linear_acc1": round(float(metrics["val_acc1"]), 4),
        "knn_acc1": round(float(neighbours["acc1"]), 4),
        **gates,
    }


def _measured(checkpoint: Path, own: Path, figures: dict[str, Any]) -> dict[str, Any]:
    """Sparsity, multiply-accumulates, bytes of the encoder's file, and training cost."""
    from solo.checkpoints import load_run
    from solo.checkpoints.exporting import export_encoder
    from sparse_ext.cost.of_checkpoint import measure, training_cost
    from sparse_ext.export import save_packed

    table, (backbone, _) = measure(checkpoint), load_run(checkpoint)
    file = own / "encoder.safetensors"
    if table.prunable.sparsity > 0:  # of methods like SDCLR the dense network is what counts
        save_packed(backbone.state_dict(), file)
    else:
        export_encoder(backbone, file)
    return {
        "measured_sparsity": round(table.prunable.sparsity, 6),
        "macs_dense": figures.get("macs_dense", table.macs_dense),
        "macs_effective": round(figures.get("macs_effective", table.macs_effective)),
        "bytes": file.stat().st_size,
        **{f"training_cost_{k}": round(v, 4) for k, v in training_cost(checkpoint).items()},
    }


def circumstances() -> dict[str, Any]:
    """Machine, versions, commit and day."""
    import torch

    git = ["git", "-C", str(programs.ROOT), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    return {
        "machine": _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit or None,
        "date": date.today().isoformat(),
    }


def _processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
