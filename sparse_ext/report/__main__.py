# SPDX-License-Identifier: MIT
"""`python3 -m sparse_ext.report RUN_DIR [...]`: write report.html into each run's folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    """Write the reports; 0, or 2 after a message for a mistake of the user's."""
    parser = argparse.ArgumentParser(prog="python3 -m sparse_ext.report", description=__doc__)
    parser.add_argument("run_dir", nargs="+", type=Path, help="folder with metrics.csv, args.json")
    parser.add_argument("--output", type=Path, help="another file (one run only)")
    args = parser.parse_args(argv)
    if args.output and len(args.run_dir) > 1:
        parser.error("--output takes one run; several reports would overwrite each other")
    from solo.errors import SoloError
    from sparse_ext.report.run import write_report

    try:
        for folder in args.run_dir:
            print(write_report(folder, args.output))
    except SoloError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
