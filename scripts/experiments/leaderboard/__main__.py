# SPDX-License-Identifier: MIT
"""Train and evaluate every cell of a leaderboard; started again, it goes on where it was."""

from __future__ import annotations

import argparse
import fnmatch
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.experiments import programs
from scripts.experiments.jobs import Job, JobError, Runner
from scripts.experiments.leaderboard import results
from scripts.experiments.leaderboard.cells import Cell, cells, searches
from scripts.experiments.leaderboard.overall import Overall
from scripts.experiments.leaderboard.protocol import PROTOCOLS, Protocol, protocol, run_folder
from solo.errors import ConfigError, did_you_mean
from solo.files.lock import FolderLock
from solo.programs.app import long_program


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; 0, 2 after a message for an error, 130 when interrupted."""
    args = _parse(argv)
    return long_program(lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    programs.require_checkout()
    board = protocol(args.board)
    folder = (args.output or Path("runs/leaderboard") / args.board).resolve()
    file = args.json or programs.ROOT / f"benchmarks/results/{args.board}_leaderboard.json"
    wanted = select(args.board, args.only)
    if args.list:
        print("\n".join(cell.name for cell in wanted))
        return 0
    board.images(args.data)
    more = (*programs.precision(), *args.set)
    jobs = plan(args.board, board, folder, wanted, more, args.linear, args.data)
    slots = args.processes or programs.cores()
    env = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with FolderLock(folder):
        taken = set() if args.known is None else results.take(args.board, args.known, folder)
        jobs = _without(jobs, taken)
        print(f"{len(jobs)} cells on {board.title}, {slots} at a time. Folder: {folder}")
        _forget_what_is_gone(folder, wanted)
        show = Overall(slots, lambda: results.write(args.board, folder, file))
        try:
            Runner(folder, slots, env, show).run(jobs, keep_going=True)
        except JobError as error:
            failed = [job.name for job in jobs if job.failure]
            print(f"\n{error}\n\nFailed, and not in the table: {', '.join(failed)}.")
            return 1
        finally:
            results.write(args.board, folder, file)
    print(f"All cells are there. Figures: {file}")
    return 0


def select(board: str, patterns: Sequence[str]) -> list[Cell]:
    """The cells whose names fit one of the patterns, all without patterns, in their order.

    Raises:
        ConfigError: a pattern fits no cell.
    """
    every = list(cells(board))
    names = [cell.name for cell in every]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ConfigError(f"--only {pattern}: no cell fits. {did_you_mean(pattern, names)}")
    fits = [not patterns or any(fnmatch.fnmatch(n, p) for p in patterns) for n in names]
    return [cell for cell, fit in zip(every, fits, strict=True) if fit]


def plan(
    name: str,
    board: Protocol,
    folder: Path,
    wanted: Sequence[Cell],
    more: Sequence[str] = (),
    linear: Sequence[str] = (),
    data: Path | None = None,
) -> list[Job]:
    """Jobs for the wanted cells, and for those that they need, in the order of `cells()`."""
    needed = {cell.name for cell in wanted}
    for cell in wanted:
        needed |= set(_after(cell))
    every = [cell for cell in cells(name) if cell.name in needed]
    return [_job(name, board, folder, cell, more, linear, data) for cell in every]


def _job(
    name: str,
    board: Protocol,
    folder: Path,
    cell: Cell,
    more: Sequence[str],
    linear: Sequence[str],
    data: Path | None,
) -> Job:
    command = (
        *(sys.executable, "-m", "scripts.experiments.leaderboard.run", name, cell.name, folder),
        *(() if data is None else ("--data", data.resolve())),
        *("--set", *more, "--linear", *linear),
    )
    epochs = programs.max_epochs(programs.ROOT / board.pretrain, (*board.overrides, *more))
    # without the folder's place and the code: hours of runs outlive both
    mark = programs.fingerprint((board.fingerprint(cell), *more, "linear", *linear))
    return Job(
        name=cell.name,
        title=cell.name,
        command=lambda: command,
        fingerprint=mark,
        after=_after(cell),
        progress=programs.epochs(epochs),
    )


def _without(jobs: Sequence[Job], taken: set[str]) -> list[Job]:
    """The jobs that are left when some cells' figures come from elsewhere."""
    left = [job for job in jobs if job.name not in taken]
    for job in left:
        job.after = tuple(name for name in job.after if name not in taken)
    return left


def _forget_what_is_gone(folder: Path, wanted: Sequence[Cell]) -> None:
    """A cell whose figures somebody has deleted is run again."""
    for cell in wanted:
        if not (run_folder(folder, cell) / "cell.json").is_file():
            (folder / "done" / f"{cell.name}.json").unlink(missing_ok=True)


def _after(cell: Cell) -> tuple[str, ...]:
    """Names of the cells that must have finished before."""
    if cell.setting is not None:
        return ()
    dense = [Cell("dense", "none", 0.0, cell.seed)] if cell.method == "asp" else []
    return tuple(other.name for other in (*searches(cell.method), *dense))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="leaderboard", description=__doc__)
    parser.add_argument("board", help=f"which: {', '.join(PROTOCOLS)}")
    parser.add_argument("--output", type=Path, help="folder of the runs (runs/leaderboard/BOARD)")
    parser.add_argument("--json", type=Path, help="file of the figures (in benchmarks/results/)")
    parser.add_argument("--known", type=Path, help="such a file: its cells are not run again")
    parser.add_argument("--data", type=Path, help="folder of the images, where they are needed")
    parser.add_argument("--processes", type=int, help="cells at a time (as many as cores)")
    parser.add_argument("--only", nargs="*", default=[], metavar="PATTERN", help="names of cells")
    parser.add_argument("--list", action="store_true", help="print the names of the cells")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="pretraining")
    parser.add_argument("--linear", nargs="*", default=[], metavar="KEY=VALUE", help="evaluation")
    args = parser.parse_args(argv)
    if args.processes is not None and args.processes < 1:
        parser.error("--processes must be at least 1")
    return args


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
