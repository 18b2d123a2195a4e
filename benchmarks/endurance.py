# SPDX-License-Identifier: MIT
"""Memory and open files of a long run, and what Ctrl-C leaves of its workers.

    python3 benchmarks/endurance.py --steps 2000

Trains a small sparse pair on the embedded digits with two loader workers, validation, checkpoints
and metrics. Resident memory (MB) and open files of the main process are printed per twentieth of
the run; the second half must not grow by more than --megabytes and no file. Then a run is
interrupted as by Ctrl-C, and no process of it may be left.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PER_EPOCH = 50  # steps
COMMAND = (
    *(sys.executable, str(ROOT / "main_pretrain.py")),
    *("--config-path", str(ROOT / "tests" / "stress"), "--config-name", "tiny.yaml"),
    *("+sparse=synccp", f"limit_train_batches={PER_EPOCH}", "data.num_workers=2"),
)


def start(folder: Path, epochs: int) -> subprocess.Popen:
    """The run as a process of a session of its own."""
    with open(folder / "log", "w") as log:
        return subprocess.Popen(
            (*COMMAND, f"max_epochs={epochs}"),
            cwd=folder,
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )


def steps_of(folder: Path) -> int:
    """Optimizer steps in the run's checkpoints, by their names."""
    epochs = [int(p.stem.rpartition("ep=")[2]) for p in folder.rglob("*-ep=*.ckpt")]
    return (max(epochs) + 1) * PER_EPOCH if epochs else 0


def megabytes(pid: int) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def files(pid: int) -> int:
    """Open files of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def session(leader: int) -> list[int]:
    """Processes of a session that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, *rest = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(rest[2]) == leader and state != "Z":
            found.append(int(path.parent.name))
    return found


def endure(folder: Path, steps: int) -> list[tuple[int, float, int]]:
    """Rows of (step, megabytes, open files) of a run of so many steps.

    Workers come and go with every epoch, and files with them: of those the fewest since the row
    before count.
    """
    process, rows, due = start(folder, steps // PER_EPOCH), [], steps // 20
    opened: list[int] = []
    while process.poll() is None:
        done = steps_of(folder)
        try:
            opened.append(files(process.pid))
            if done >= due * (len(rows) + 1):
                rows.append((done, megabytes(process.pid), min(opened)))
                opened = []
                print("step {:6}: {:8.1f} MB, {:4} open files".format(*rows[-1]), flush=True)
        except OSError:  # it has just ended
            break
        time.sleep(0.02)
    if process.wait():
        sys.exit((folder / "log").read_text()[-2000:])
    return rows


def interrupt(folder: Path) -> list[int]:
    """Processes that are left five seconds after a run was interrupted in its first epochs."""
    process = start(folder, 1000)
    while steps_of(folder) == 0 and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    code = process.wait(timeout=60)
    end = time.monotonic() + 5
    while (left := session(process.pid)) and time.monotonic() < end:
        time.sleep(0.1)
    print(f"Ctrl-C: exit {code}, {len(left)} processes left", flush=True)
    return left


def main() -> int:
    """Print the figures; 1 if the run grows or leaves something."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument(
        "--megabytes", type=float, default=5.0, help="that the second half may grow"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        rows = endure(Path(one), args.steps)
        left = interrupt(Path(other))
    half = rows[len(rows) // 2 :]
    memory, opened = half[-1][1] - half[0][1], half[-1][2] - half[0][2]
    print(f"second half: {memory:+.1f} MB, {opened:+d} open files")
    return int(memory > args.megabytes or opened > 0 or bool(left))


if __name__ == "__main__":
    sys.exit(main())
