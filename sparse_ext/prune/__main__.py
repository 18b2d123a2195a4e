# SPDX-License-Identifier: MIT
"""An encoder made sparse without training.

SOURCE is the folder or a checkpoint of a run, a weight file (with --backbone), or timm:NAME. A few
hundred unlabelled images are enough. Writes a run folder that main_linear.py, main_knn.py,
main_umap.py, sparse_ext.cost, sparse_ext.report and sparse_ext.export open like any other.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from solo.monitoring.console import command


def main(argv: Sequence[str] | None = None) -> int:
    """Prune; 0, 2 after a message for a mistake of the user's, or 130 after Ctrl-C."""
    args = _parse(argv)
    from solo.programs.app import long_program
    from sparse_ext.extension import register
    from sparse_ext.prune.plan import Settings
    from sparse_ext.prune.program import Request, run

    register()
    settings = Settings(
        method=args.method,
        sparsities=args.sparsity,
        granularity=args.granularity,
        allocation=args.allocation,
        stem_dense=not args.prune_stem,
        exclude=tuple(args.exclude),
        seed=args.seed,
    )
    request = Request(
        source=args.source,
        data=args.data,
        out=args.out,
        settings=settings,
        count=args.images,
        which=args.encoder,
        backbone=args.backbone,
        kwargs=args.backbone_kwargs,
        image_size=args.image_size,
    )
    return long_program(lambda: run(request))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=command("prune", "python3 -m sparse_ext.prune"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", help="run folder, checkpoint, weight file, or timm:NAME")
    parser.add_argument("--data", required=True, help="folder of images, or digits")
    parser.add_argument("--out", type=Path, required=True, help="run folder to write")
    parser.add_argument(
        "--method",
        default="sparsegpt",
        help="magnitude, lamp, wanda, sparsegpt or taylor (default: sparsegpt)",
    )
    parser.add_argument(
        "--sparsity",
        type=_fractions,
        default=(0.8,),
        help="share of zero weights over the prunable layers; several with commas share the "
        "calibration and get a folder each (default: 0.8)",
    )
    parser.add_argument(
        "--granularity",
        default="element",
        help="element, 2:4 (any N:M), block8 or filter (default: element)",
    )
    parser.add_argument(
        "--allocation",
        help="how layers get their budgets: global, lamp, erk, er or uniform (default: global "
        "where a method compares layers, else lamp)",
    )
    parser.add_argument("--images", type=int, default=256, help="calibration images (default: 256)")
    parser.add_argument("--image_size", type=int, help="side of the images (default: the run's)")
    parser.add_argument(
        "--encoder",
        choices=("online", "momentum"),
        default="online",
        help="which encoder of a momentum method (default: online)",
    )
    parser.add_argument("--backbone", help="encoder of a weight file that no run wrote")
    parser.add_argument(
        "--backbone_kwargs", type=_mapping, default={}, help='its options, as JSON: {"width": 16}'
    )
    parser.add_argument("--prune_stem", action="store_true", help="prune the first layer, too")
    parser.add_argument("--exclude", nargs="*", default=[], help="globs of layers to leave dense")
    parser.add_argument("--seed", type=int, default=0, help="of drawn images (default: 0)")
    return parser.parse_args(argv)


def _fractions(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers such as 0.5,0.8") from None


def _mapping(text: str) -> dict:
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise argparse.ArgumentTypeError(f'{text!r}: expected JSON such as {{"width": 16}}')
    return content


if __name__ == "__main__":
    sys.exit(main())
