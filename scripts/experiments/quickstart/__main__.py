# SPDX-License-Identifier: MIT
"""`python -m scripts.experiments.quickstart`: pretraining dense and sparse, evaluation, report."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from scripts.experiments import programs
from scripts.experiments.jobs import Runner
from scripts.experiments.progress import Display
from scripts.experiments.quickstart import plan
from solo.files.lock import FolderLock
from solo.programs.app import long_program

OWN = ("dense", "sparse", "random", "linear-*", "logs", "done", "*.safetensors")


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; 0, 2 after a message for an error, 130 when interrupted."""
    args = _parse(argv)
    fast = programs.precision()
    settings = plan.Settings(args.output.resolve(), (*fast, *args.pretrain), (*fast, *args.linear))
    return long_program(lambda: _run(settings, args.fresh))


def _run(settings: plan.Settings, fresh: bool) -> None:
    with FolderLock(settings.folder):
        if fresh:
            _remove(settings.folder)
        _train(settings)


def _train(settings: plan.Settings) -> None:
    began = time.monotonic()
    slots, env = programs.share_cores()
    env["PYTHONUNBUFFERED"] = "1"
    jobs = plan.jobs(settings)
    print(
        f"Two encoders learn digits without labels, then are evaluated: {len(jobs)} programs, "
        f"{slots} at a time.\nFolder: {settings.folder} (what each program prints is in logs/)",
        flush=True,
    )
    Runner(settings.folder, slots, env, Display()).run(jobs)
    from scripts.experiments.quickstart import summary

    figures = summary.collect(settings, jobs, time.monotonic() - began)
    report, figures_file = summary.write(settings, figures)
    print(f"\n{summary.text(figures)}\n")
    print("\n".join(summary.verdict(figures)))
    print(f"\nReport:  {report}\nFigures: {figures_file}\nTook {figures['total_seconds']:.0f} s.")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="quickstart", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/quickstart"))
    parser.add_argument(
        "--fresh", action="store_true", help="run everything again, also what is done"
    )
    parser.add_argument(
        "--pretrain", nargs="*", default=[], metavar="KEY=VALUE", help="for both pretraining runs"
    )
    parser.add_argument(
        "--linear", nargs="*", default=[], metavar="KEY=VALUE", help="for the linear evaluations"
    )
    return parser.parse_args(argv)


def _remove(folder: Path) -> None:
    for pattern in OWN:
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


if __name__ == "__main__":
    sys.exit(main())
