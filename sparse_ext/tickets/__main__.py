# SPDX-License-Identifier: MIT
"""`python -m sparse_ext.tickets curves|natural|svm`: what run folders of tickets say."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from solo.programs.app import run_program


def main(argv: Sequence[str] | None = None) -> None:
    """Run one of the commands; mistakes end in one line and exit code 2."""
    args = _parser().parse_args(argv)
    run_program(lambda: args.run(args))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sparse_ext.tickets", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    curves = commands.add_parser("curves", help="one plot and table per figure")
    curves.add_argument("roots", nargs="+", help="folders that are searched for run folders")
    curves.add_argument("--output", default="figures", help="folder for FIGURE.svg and FIGURE.csv")
    curves.add_argument("--metric", default="val_acc1")
    curves.set_defaults(run=_curves)
    natural = commands.add_parser("natural", help="weights at machine zero, by layer")
    natural.add_argument("folder", help="run folder of a sweep")
    natural.add_argument("--level", type=int, default=0, help="0 is the dense run")
    natural.set_defaults(run=_natural)
    svm = commands.add_parser("svm", help="VOC07 mean average precision of each level of a sweep")
    svm.add_argument("folder", help="run folder of the sweep")
    svm.add_argument("--voc", required=True, help="VOC2007, or the VOCdevkit that holds it")
    svm.add_argument("--output", required=True, help="run folder to write; curves --metric map")
    svm.add_argument("--resize", type=int, default=256)
    svm.add_argument("--crop", type=int, default=224)
    svm.add_argument(
        "--protocol",
        choices=("goyal", "left_out"),
        default="goyal",
        help="goyal: difficult images are negatives in training; left_out: they are not there",
    )
    svm.set_defaults(run=_svm)
    return parser


def _curves(args: argparse.Namespace) -> None:
    from sparse_ext.tickets.curves import draw

    for path in draw(args.roots, args.output, args.metric):
        print(path)


def _natural(args: argparse.Namespace) -> None:
    from sparse_ext.tickets import run_folder
    from sparse_ext.tickets.sweeps.random_masks import MACHINE_ZERO, natural_sparsity

    level = run_folder.RunFolder(args.folder).level(args.level)
    weights, masks = run_folder.load_weights(level.final), level.masks()
    shares = natural_sparsity({name: weights[f"{name}.weight"] for name in masks})
    width = max(map(len, shares))
    print(
        f"share of weights of {level.folder} with |w| <= {MACHINE_ZERO:.3g}, pruned ones included"
    )
    for name, share in shares.items():
        print(f"  {name:<{width}}  {100 * share:6.2f}%")


def _svm(args: argparse.Namespace) -> None:
    from sparse_ext.tickets.transfer import transfer

    crop = {"resize": args.resize, "size": args.crop}
    transfer(args.folder, args.voc, args.output, **crop, protocol=args.protocol)


if __name__ == "__main__":
    main(sys.argv[1:])
