# SPDX-License-Identifier: MIT
"""What the encoder of a run costs: parameters, multiply-accumulates and bytes, layer by layer."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from solo.monitoring.console import command


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; 0, or 2 after a message for a mistake of the user's."""
    parser = argparse.ArgumentParser(
        prog=command("cost", "python3 -m sparse_ext.cost"), description=__doc__
    )
    parser.add_argument("checkpoint", help="folder of a run, a checkpoint, or an exported file")
    parser.add_argument(
        "--encoder",
        choices=("online", "momentum"),
        default="online",
        help="which encoder of a momentum method (default: online)",
    )
    parser.add_argument("--input_size", type=_side, help="image side (default: the run's)")
    parser.add_argument("--json", action="store_true", help="print JSON (default: a table)")
    args = parser.parse_args(argv)
    from solo.programs.app import exit_code
    from sparse_ext.extension import register

    register()

    return exit_code(lambda: print(_answer(args)))


def _answer(args: argparse.Namespace) -> str:
    from solo.checkpoints import load_run
    from solo.data.shown import input_size
    from sparse_ext.cost.memory import memory
    from sparse_ext.cost.of_checkpoint import granularity, training_cost
    from sparse_ext.cost.per_layer import count
    from sparse_ext.cost.text import describe

    backbone, run = load_run(args.checkpoint, args.encoder)
    table = count(backbone, args.input_size or input_size(run))
    size, training = memory(table, granularity(run)), training_cost(args.checkpoint)
    if not args.json:
        return describe(table, args.encoder, size, training)
    figures: dict[str, Any] = {"encoder": args.encoder, **table.to_dict()}
    figures |= {f"memory_{name}_bytes": value for name, value in size.to_dict().items()}
    figures |= {f"training_cost_{name}": value for name, value in training.items()}
    return json.dumps(figures, indent=1)


def _side(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of pixels")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
