# SPDX-License-Identifier: MIT
"""`python3 -m sparse_ext.export FORMAT CHECKPOINT`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from solo.errors import ConfigError
from solo.monitoring.console import command
from solo.registry import import_plugins

SLIM = "without the channels that masks have emptied: a smaller, faster encoder"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the file and say what is in it; 0, or 2 after a message for a mistake of the user's."""
    plugins = argparse.ArgumentParser(add_help=False)
    plugins.add_argument("--imports", action="append", default=[], help="module to import first")
    from solo.programs.app import exit_code
    from sparse_ext.export.formats import FORMATS
    from sparse_ext.extension import register

    register()
    wanted = plugins.parse_known_args(argv)[0].imports
    if code := exit_code(lambda: import_plugins(wanted)):
        return code
    named = {"slim": SLIM, **{name: each.what for name, each in FORMATS.items()}}
    parser = argparse.ArgumentParser(
        prog=command("export", "python3 -m sparse_ext.export"),
        description="An encoder of a checkpoint as a file for use outside of training.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"{name:8} {what}" for name, what in named.items()),
        parents=[plugins],
    )
    parser.add_argument("format", choices=named, help="see below")
    parser.add_argument("checkpoint", nargs="?", help="folder of a run, or a file")
    parser.add_argument(
        "--encoder",
        choices=("online", "momentum"),
        default="online",
        help="which encoder of a momentum method (default: online)",
    )
    parser.add_argument("--out", help="file to write (slim: folder); by default beside CHECKPOINT")
    parser.add_argument(
        "--half", action="store_true", help="packed: values in float16 (default: as they are)"
    )
    parser.add_argument(
        "--multiple",
        type=int,
        default=1,
        help="slim: keep as many empty channels as make each width a multiple of this; 16 is best "
        "for ONNX Runtime",
    )
    parser.add_argument(
        "--survey",
        action="store_true",
        help="slim: which networks of torchvision and timm can lose half of their channels",
    )
    parser.add_argument("--json", help="slim --survey: file for the results, taken up again")
    parser.add_argument("--models", nargs="+", default=(), help="slim --survey: only these")
    parser.add_argument("--pattern", default="2:4", help="nm: N:M (default: 2:4)")
    parser.add_argument(
        "--int8", action="store_true", help="onnx, nm: a second file in 8-bit integers (QDQ)"
    )
    parser.add_argument("--calibrate", help="--int8: folder of images that show the ranges")
    parser.add_argument("--images", type=int, default=128, help="--int8: how many (default: 128)")
    parser.add_argument("--input_size", type=int, help="image side (default: the run's)")
    args = parser.parse_args(argv)
    if args.survey:
        from sparse_ext.export.survey import survey

        survey(args.models, args.json)
        return 0
    if args.checkpoint is None:
        parser.error("which checkpoint? Give its file, or slim --survey.")
    return exit_code(lambda: print(_slim(args) if args.format == "slim" else _write(args)))


def _slim(args: argparse.Namespace) -> str:
    from sparse_ext.export.slim import slim

    _check_int8(args)
    done = slim(args.checkpoint, args.out, args.encoder, args.multiple)
    before, after = done.report.parameters
    was, now = (1e3 * seconds for seconds in done.seconds)
    lines = [f"{'channels written by':32} before  after"]
    lines += [f"{name:32} {a:6} {b:6}" for name, (a, b) in done.report.widths.items()]
    lines += [f"kept: {name}: {why}" for name, why in done.report.obstacles.items()]
    return "\n".join(
        [
            *lines,
            f"{done.report.removed} channels removed; {done.report.carriers} layers keep one only "
            f"to carry constants",
            f"parameters {before:,} -> {after:,} ({before / after:.2f}x fewer)",
            f"MACs per image of {done.input_size}x{done.input_size}: {done.cost[0]:,} -> "
            f"{done.cost[1]:,} ({done.cost[0] / done.cost[1]:.2f}x fewer, all of them dense)",
            f"time per image, measured one by one: {was:.2f} ms -> {now:.2f} ms ({was / now:.2f}x)",
            f"features differ from the masked encoder's by {done.difference:.1e} of the largest",
            _wrote(done.path),
        ]
    )


def _check_int8(args: argparse.Namespace) -> None:
    if args.int8 and args.format not in ("onnx", "nm"):
        raise ConfigError(f"--int8 is for onnx and nm, and {args.format} is no ONNX file.")
    if args.int8 != (args.calibrate is not None):
        have, lack = ("int8", "calibrate FOLDER") if args.int8 else ("calibrate", "int8")
        raise ConfigError(
            f"--{have} without --{lack}: integers need images that show the ranges of what layers "
            f"put out. Give both, such as --int8 --calibrate datasets/imagenet100/train."
        )
    if args.images < 2:
        raise ConfigError(f"--images {args.images}: at least 2 images are needed.")


def _write(args: argparse.Namespace) -> str:
    from solo.checkpoints.runs import load_run, weights_file
    from solo.data.shown import input_size
    from sparse_ext.export.formats import FORMATS, Request

    _check_int8(args)
    backbone, run = load_run(args.checkpoint, args.encoder)
    source, chosen = weights_file(args.checkpoint), FORMATS[args.format]
    suffix = f".{chosen.suffix}" if chosen.suffix else ""
    path = Path(args.out or source.with_name(f"{source.stem}-{args.format}{suffix}"))
    size = args.input_size or input_size(run)
    folder = args.calibrate if args.int8 else None
    parts = args.half, args.pattern, run, folder, args.images
    lines = chosen(Request(source, backbone, path, size, *parts))
    return "\n".join([*lines, _wrote(path)])


def _wrote(path: Path) -> str:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return f"wrote {path} ({sum(file.stat().st_size for file in files) / 1e6:.2f} MB)"


if __name__ == "__main__":
    sys.exit(main())
