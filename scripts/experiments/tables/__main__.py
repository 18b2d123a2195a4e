# SPDX-License-Identifier: MIT
"""Run rows of a paper's table, and put finished runs beside its figures.

table4.sh byol-synccp-90 [key=value ...]     pretraining, then its evaluations
table4.sh byol-synccp-90 --seeds 1 2 3       three runs; the table has mean and deviation
table4.sh --scale small --data FOLDER        a few rows side by side, minutes on a CPU
table4.sh --summary                          one table of what is finished
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.experiments import programs as shared
from scripts.experiments.tables import images, programs
from scripts.experiments.tables.rows import SCALES, Row, find, rows, title
from scripts.experiments.tables.runs import Options, require_source
from solo.errors import ConfigError
from solo.files.lock import FolderLock
from solo.programs.app import long_program


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; 0, 2 after a message for an error, 130 when interrupted."""
    args = _parse(argv)
    return long_program(lambda: _run(args))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="table", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", help=argparse.SUPPRESS)
    parser.add_argument("table", help=argparse.SUPPRESS)
    parser.add_argument("words", nargs="*", metavar="ROW or KEY=VALUE", help="KEY=VALUE: training")
    parser.add_argument("--list", action="store_true", help="print the rows")
    parser.add_argument("--dry-run", action="store_true", help="print the commands")
    parser.add_argument("--summary", action="store_true", help="only gather what is finished")
    parser.add_argument("--scale", choices=SCALES, default="paper")
    parser.add_argument("--data", type=Path, help="folder with train/ and val/")
    parser.add_argument("--output", type=Path, default=Path("runs/tables"))
    parser.add_argument("--checkpoint", type=Path, help="for rows that start from another's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[], help="one run for each")
    parser.add_argument(
        "--linear", nargs="*", default=[], metavar="KEY=VALUE", help="for main_linear.py"
    )
    return parser.parse_intermixed_args(argv)


def _run(args: argparse.Namespace) -> int:
    known = rows(args.table, args.dataset, args.scale)
    names = [find(word, known) for word in args.words if not _override(word)]
    if args.list:
        print(f"{args.table}: {title(args.table)}\n" + "\n".join(map(_line, known.values())))
        return 0
    options = _options(args)
    if args.summary:
        return _summary(list(known.values()), options)
    if not names and args.scale == "paper":
        raise ConfigError(f"Which row? One of: {', '.join(known)}. Or --list, --summary.")
    chosen = [known[name] for name in names or known]
    if args.dry_run:
        print("\n".join(programs.shown(job) for job in programs.jobs(chosen, options, args.seeds)))
        return 0
    return _train(chosen, list(known.values()), options, args.seeds)


def _override(word: str) -> bool:
    return "=" in word or word.startswith("~")


def _line(row: Row) -> str:
    printed = ", ".join(f"{key} {value:g}" for key, value in row.paper.items())
    return f"  {row.name:24} {' '.join(row.overrides) or 'dense'}   [paper: {printed}]"


def _options(args: argparse.Namespace) -> Options:
    suffix = "" if args.scale == "paper" else f"-{args.scale}"
    fast = () if args.scale == "paper" else shared.precision()
    return Options(
        folder=args.output.resolve() / f"{args.table}-{args.dataset}{suffix}",
        images=None if args.data is None else images.require(args.data),
        training=(*fast, *(word for word in args.words if _override(word))),
        linear=tuple(args.linear),
        checkpoint=args.checkpoint,
    )


def _train(chosen: list[Row], known: list[Row], options: Options, seeds: list[int]) -> int:
    from scripts.experiments.jobs import JobError, Runner
    from scripts.experiments.progress import Display

    shared.require_checkout()
    each: Sequence[int | None] = seeds or [None]
    for row, seed in itertools.product(chosen, each):
        require_source(row, dataclasses.replace(options, seed=seed))
    small = chosen[0].images
    slots, env = shared.share_cores() if small else (1, {})
    with FolderLock(options.folder):
        options = _with_subset(options, small)
        jobs = programs.jobs(chosen, options, seeds)
        print(
            f"{title(chosen[0].table)}: {len(jobs)} programs, {slots} at a time.\n"
            f"Folder: {options.folder} (what each program prints is in logs/)",
            flush=True,
        )
        runner = Runner(options.folder, slots, env | {"PYTHONUNBUFFERED": "1"}, Display())
        runner.env["PYTHONPATH"] = f"{shared.ROOT}:{runner.env.get('PYTHONPATH', '')}"
        try:
            runner.run(jobs, keep_going=True)
        except JobError:
            _summary(known, options)
            raise
    return _summary(known, options)


def _with_subset(options: Options, number: int | None) -> Options:
    """Small runs see a part of the images."""
    if number is None:
        return options
    if options.images is None:
        raise ConfigError("A small run needs images: --data FOLDER with train/ and val/.")
    part = images.subset(options.images, options.folder / "images", number)
    return dataclasses.replace(options, images=part)


def _summary(known: list[Row], options: Options) -> int:
    from scripts.experiments.tables import gather, write

    figures = gather.collect(known, options)
    heading, notes = title(known[0].table), write.NOTES[known[0].section]
    paths = write.write(heading, figures, options.folder, notes)
    print(f"\n{write.text(heading, figures, notes)}\n")
    print("\n".join(f"{kind}: {path}" for kind, path in paths.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
