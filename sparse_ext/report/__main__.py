# SPDX-License-Identifier: MIT
"""A report of every run, written as report.html into its folder.

Several runs and `--compare`: one page with a table of what differs and what came of it, accuracy
against cost, and the curves of all of them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from solo.monitoring.console import command

COMPARED = "comparison.html"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the reports; 0, or 2 after a message for a mistake of the user's."""
    parser = argparse.ArgumentParser(
        prog=command("report", "python3 -m sparse_ext.report"), description=__doc__
    )
    parser.add_argument("run_dir", nargs="+", type=Path, help="folder of a run")
    parser.add_argument(
        "--output", type=Path, help="file to write, of one run (default: RUN_DIR/report.html)"
    )
    parser.add_argument(
        "--compare",
        type=Path,
        nargs="?",
        const=Path(COMPARED),
        metavar="FILE",
        help=f"one page for all runs; default: {COMPARED} in the folder that holds them all",
    )
    parser.add_argument("--no-timing", action="store_true", help="with --compare: no milliseconds")
    parser.add_argument(
        "--umap",
        type=int,
        nargs="?",
        const=2000,
        metavar="N",
        help="embed the features of N validation images (2000), every branch of a gated encoder",
    )
    parser.add_argument(
        "--dense", type=Path, metavar="RUN", help="dense run in the same figures (one run only)"
    )
    parser.add_argument(
        "--neighbours",
        type=int,
        default=500,
        metavar="N",
        help="nearest neighbours among N validation images (default: 500); 0 leaves them out",
    )
    parser.add_argument(
        "--images", type=Path, nargs="+", default=[], help="feature maps of these pictures (CDG)"
    )
    parser.add_argument("--layer", help="gated convolution for --images; default: layer1.0.conv1")
    parser.add_argument("--channel", type=int, help="channel for --images; default: liveliest")
    args = parser.parse_args(argv)
    if args.output and len(args.run_dir) > 1:
        parser.error("--output takes one run; several reports would overwrite each other")
    if args.dense and (args.compare or len(args.run_dir) > 1):
        parser.error("--dense goes with the report of one run; --compare takes it as any other")
    if args.compare and len(args.run_dir) < 2:
        parser.error("--compare takes at least two runs")
    if args.umap is not None and (args.compare or args.umap < 4):
        parser.error("--umap goes with reports of single runs, and takes at least 4 images")
    from solo.programs.app import exit_code
    from sparse_ext.extension import register

    register()
    return exit_code(lambda: _write(args))


def _write(args: argparse.Namespace) -> None:
    from sparse_ext.report.gating_panels import Chosen
    from sparse_ext.report.one_run import write_report
    from sparse_ext.report.several_runs import page_for, write_comparison

    if args.compare:
        target = page_for(args.run_dir) if args.compare == Path(COMPARED) else args.compare
        print(write_comparison(args.run_dir, target, not args.no_timing))
        return
    chosen = Chosen(tuple(args.images), args.layer, args.channel) if args.images else None
    for folder in args.run_dir:
        more = {"dense": args.dense, "neighbours": args.neighbours}
        print(write_report(folder, args.output, chosen, args.umap, **more))


if __name__ == "__main__":
    sys.exit(main())
