# SPDX-License-Identifier: MIT
"""Everything that is to be measured on a GPU, in one call that may be cut off at any moment.

    python benchmarks/gpu/all.py --minutes 9 [--data FOLDER_OR_ARCHIVE] [--out benchmarks/results]

In this order: the tests that need a GPU; throughput of BYOL and SimCLR; dense, SyncCP, GraNet-SSL
and SD at 90% with equal epochs on CIFAR-10; VICReg-Dual at 30%; slim, 2:4 and masked networks
against dense. Each part gets its share of the time that is left, writes a file of its own after
every cell, and ends when its time is up; called again, all go on from what those files have. The
parts on CIFAR-10 need --data: a folder with `train/CLASS/` and `val/CLASS/`, or its tar archive;
without it they are named as left out.

Needs nothing but torch, torchvision, lightning, timm, torchmetrics and scikit-learn of a usual
image, and these wheels, all pure Python: hydra-core, omegaconf, antlr4-python3-runtime, filelock,
safetensors, and pytest for the tests. Try it on a CPU, in minutes: --tiny.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from results import ROOT, Results, circumstances

HERE = Path(__file__).resolve().parent
GRACE = 5.0  # seconds for a part to end after it was told to


@dataclass(frozen=True)
class Part:
    """One script of this folder.

    Attributes:
        name: of the part and of its file.
        share: of the time that is left when it begins.
        command: script and arguments.
        needs_data: it trains on photographs.
    """

    name: str
    share: float
    command: tuple[str, ...]
    needs_data: bool = False


#: in the order of their worth; the last one may have all that is left
PARTS = (
    Part("tests", 0.22, ("suite.py", "--only", "tests")),
    Part("throughput", 0.40, ("throughput.py",)),
    Part("quality", 0.55, ("quality.py", "--rows", "sparse"), needs_data=True),
    Part("gating", 0.50, ("quality.py", "--rows", "gating"), needs_data=True),
    Part("timings", 1.00, ("timings.py",)),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts; 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--data", type=Path, help="CIFAR-10: class folders or their archive")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results")
    parser.add_argument("--only", nargs="*", choices=[part.name for part in PARTS])
    parser.add_argument("--tiny", action="store_true", help="a try on the CPU")
    args = parser.parse_args(argv)
    if args.minutes <= 0:
        parser.error("--minutes must be above 0")
    end = time.monotonic() + 60 * args.minutes
    args.out.mkdir(parents=True, exist_ok=True)
    data = None if args.data is None else images(args.data, args.out.parent / ".gpu_data")
    log = Results(args.out / "gpu_all.json")
    for part in PARTS:
        if args.only is None or part.name in args.only:
            log.add(part.name, run(part, data, args.out, end, args.tiny))
    return report(log)


def images(path: Path, folder: Path) -> Path:
    """The folder with `train` and `val`: `path`, or what the archive `path` has in it."""
    if path.is_dir():
        return path
    if not any(folder.glob("**/train")):
        with tarfile.open(path) as archive:
            archive.extractall(folder, filter="data")
    return next(folder.glob("**/train")).parent


def run(part: Part, data: Path | None, out: Path, end: float, tiny: bool) -> dict[str, object]:
    """One part in its share of the time; what it printed last, and how it ended."""
    if part.needs_data and data is None:
        return {"ended": "left out: it needs --data", "seconds": 0.0}
    seconds = part.share * (end - time.monotonic())
    if seconds < 1:
        return {"ended": "no time left", "seconds": 0.0}
    script, *arguments = part.command
    command = [sys.executable, str(HERE / script), *arguments]
    command += ["--out", str(out / f"gpu_{part.name}.json")]
    command += ["--data", str(data)] if part.needs_data else []
    command += ["--tiny"] if tiny else []
    began = time.monotonic()
    paths = [str(ROOT), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with open(out / f"gpu_{part.name}.log", "w", encoding="utf-8") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        ended = wait(process, seconds)
    lines = (out / f"gpu_{part.name}.log").read_text("utf-8", errors="replace").splitlines()
    taken = round(time.monotonic() - began, 1)
    print(f"{part.name:12}{taken:8.1f} s  {ended}", flush=True)
    return {"ended": ended, "seconds": taken, "last_lines": lines[-12:]}


def wait(process: subprocess.Popen, seconds: float) -> str:
    """`done`, `failed (code)`, or `time is up: goes on when called again`.

    Afterwards it is gone with all that it has started, also when we are interrupted.
    """
    code = None
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        tell(process, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
        return "time is up: goes on when called again"
    finally:
        tell(process, signal.SIGKILL)
        process.wait()
    return "done" if code == 0 else f"failed (exit code {code})"


def tell(process: subprocess.Popen, word: signal.Signals) -> None:
    """Send a signal to a part and all that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, word)


def report(log: Results) -> int:
    """Print where everything is; 1 if a part failed."""
    about = circumstances()
    print(f"{about['gpu'] or 'no GPU'}, torch {about['torch']}: {log.path}")
    failed = [name for name, cell in log.cells.items() if str(cell["ended"]).startswith("failed")]
    for name in failed:
        print(f"\n{name} failed:\n" + json.dumps(log.cells[name]["last_lines"], indent=1))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
