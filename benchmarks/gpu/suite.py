# SPDX-License-Identifier: MIT
"""The tests that need a GPU, then the quickstart, with their times (10 minutes at most each).

python benchmarks/gpu/suite.py [--out benchmarks/results/gpu_suite.json]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from results import ROOT, Results

JOBS = {
    "tests": ["-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider"],
    "quickstart": ["-m", "scripts.experiments.quickstart"],
}
LIMIT = 600  # seconds


def main() -> int:
    """Run what is not in the file yet; 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/gpu_suite.json")
    parser.add_argument("--only", choices=JOBS, nargs="*", default=list(JOBS))
    parser.add_argument("--tiny", action="store_true", help="a try on the CPU: a few other tests")
    args = parser.parse_args()
    if args.tiny:
        JOBS["tests"] = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_registry.py"]
    results = Results(args.out)
    for name in args.only:
        if name in results and results.cells[name]["ok"]:
            continue
        start = time.perf_counter()
        try:
            done = subprocess.run(
                [sys.executable, *JOBS[name]], cwd=ROOT, timeout=LIMIT, capture_output=True
            )
            ok, output = done.returncode == 0, done.stdout + done.stderr
        except subprocess.TimeoutExpired as error:  # the quickstart goes on in the next run
            ok, output = False, error.stdout or b""
        lines = output.decode(errors="replace").strip().splitlines()
        seconds = round(time.perf_counter() - start, 1)
        results.add(name, {"ok": ok, "seconds": seconds, "last_lines": lines[-12:]})
    for name, cell in results.cells.items():
        print(f"{name:12}{'ok' if cell['ok'] else 'FAILED':8}{cell['seconds']:8.1f} s")
    return 0 if all(cell["ok"] for cell in results.cells.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
