# SPDX-License-Identifier: MIT
"""`python -m scripts.experiments.compress SOURCE DATA SPARSITY`: prune, recover, measure."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.experiments.compress.recovery import configuration, key_of
from scripts.experiments.programs import ROOT, precision
from solo.errors import SoloError


class StepError(SoloError, RuntimeError):
    """A program of the series failed; it has printed why."""


def main(argv: Sequence[str] | None = None) -> int:
    """Compress; 0, or 2 after a message for a mistake of the user's."""
    args = _parse(argv)
    from solo.programs.app import exit_code
    from sparse_ext.extension import register

    register()
    return exit_code(lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    began = time.monotonic()
    out = args.out.resolve()
    common = ["--data", args.data, "--seed", args.seed]
    pruned = out / "pruned"
    print(f"1/3 pruning by {args.method}", flush=True)
    _python(
        *("-m", "sparse_ext.prune", args.source, "--out", pruned, "--method", args.method),
        *("--sparsity", args.sparsity, "--granularity", args.granularity, *common),
        *_named(args),
    )
    print(f"2/3 recovery: {args.epochs} epochs of distillation, masks fixed", flush=True)
    facts = json.loads((pruned / "args.json").read_text())
    config = configuration(facts, args.source, pruned, args.data, args.epochs)
    config["seed"] = args.seed
    if args.backbone:
        named = {"name": args.backbone, "kwargs": args.backbone_kwargs}
        config["method_kwargs"]["teacher_backbone"] = named
    folder = out / "recovery" / key_of(config, facts["pruned"])
    config["checkpoint"] = {"enabled": True, "dir": str(folder)}
    (out / "recovery.yaml").write_text(json.dumps(config, indent=1))  # JSON is YAML
    _python(
        *(ROOT / "main_pretrain.py", "--config-path", out, "--config-name", "recovery.yaml"),
        *precision(),
    )
    print("3/3 measuring", flush=True)
    recovered = max(folder.glob("distill/*/*.ckpt"), key=lambda file: file.stat().st_mtime).parent
    rows = _measure(args, pruned, recovered)
    (out / "summary.json").write_text(json.dumps(rows, indent=1))
    for name, row in rows.items():
        print(f"{name:>10}: cosine {row['feature_cosine']:.4f}, kNN {row['knn_acc1']}")
    print(f"Recovered encoder: {recovered}\nTook {time.monotonic() - began:.0f} s.")


def _measure(args: argparse.Namespace, pruned: Path, recovered: Path) -> dict[str, Any]:
    """The same figures of all three encoders, on images that calibration has not seen."""
    from solo.checkpoints import load_run
    from sparse_ext.prune import program, results
    from sparse_ext.prune.plan import Settings
    from sparse_ext.prune.source import open_source

    source = open_source(args.source, backbone=args.backbone, kwargs=args.backbone_kwargs)
    request = program.Request(args.source, args.data, args.out, Settings(seed=args.seed))
    _, unseen = program.calibration_and_unseen(request, source)
    dense = results.features(source.encoder, unseen.batches)
    accuracy = results.knn_accuracy(dense, unseen.labels)
    rows: dict[str, Any] = {"dense": {"feature_cosine": 1.0, "knn_acc1": accuracy}}
    for name, run in (("pruned", pruned), ("recovered", recovered)):
        net = load_run(run)[0].eval()
        rows[name] = results.figures(net, dense, unseen, source.size)
    return rows


def _named(args: argparse.Namespace) -> tuple[str, ...]:
    """The encoder of a weight file, as `sparse_ext.prune` is told of it."""
    if not args.backbone:
        return ()
    return "--backbone", args.backbone, "--backbone_kwargs", json.dumps(args.backbone_kwargs)


def _python(*command: object) -> None:
    done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT)
    if done.returncode:
        raise StepError(
            f"{' '.join(map(str, command[:2]))} ended with exit code {done.returncode}; its "
            "message stands above. The same command goes on from here."
        )


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bash scripts/compress.sh", description=__doc__)
    parser.add_argument("source", help="run folder, checkpoint, weight file, or timm:NAME")
    parser.add_argument("data", help="folder of images, or digits")
    parser.add_argument("sparsity", type=float, help="share of zero weights, such as 0.8")
    parser.add_argument("--out", type=Path, default=Path("runs/compress"))
    parser.add_argument("--epochs", type=int, default=4, help="of recovery (default: 4)")
    parser.add_argument("--method", default="sparsegpt")
    parser.add_argument("--granularity", default="element")
    parser.add_argument("--backbone", help="encoder of a weight file that no run wrote")
    parser.add_argument(
        "--backbone_kwargs", type=json.loads, default={}, help='its options: {"width": 16}'
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
