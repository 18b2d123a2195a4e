# SPDX-License-Identifier: MIT
"""`python3 -m sparse_ext.cost CHECKPOINT`: what the encoder in a checkpoint costs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; 0, or 2 after a message for a mistake of the user's."""
    parser = argparse.ArgumentParser(prog="python3 -m sparse_ext.cost", description=__doc__)
    parser.add_argument("checkpoint", help="a .ckpt file with its args.json beside it")
    parser.add_argument("--encoder", choices=("online", "momentum"), default="online")
    parser.add_argument("--input_size", type=int, help="image side; by default the dataset's")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    from solo.errors import SoloError
    from sparse_ext.cost.checkpoint import measure
    from sparse_ext.cost.text import describe

    try:
        table = measure(args.checkpoint, args.encoder, args.input_size)
    except SoloError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(table.to_dict(), indent=1) if args.json else describe(table, args.encoder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
