# SPDX-License-Identifier: MIT
"""`python3 -m sparse_ext.export {slim,dense,packed,csr,onnx,nm} CHECKPOINT`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

FORMATS = {
    "slim": "without the channels that masks have emptied: a smaller, faster encoder",
    "dense": "torchvision's or timm's layout, pruned weights as zeros",
    "packed": "kept values and one bit per weight: the smallest file",
    "csr": "pruned weights as compressed sparse rows",
    "onnx": "ONNX, checked in ONNX Runtime",
    "nm": "ONNX for 2:4 hardware; refused unless every group fits",
}
_SUFFIX = {"onnx": "onnx", "nm": "onnx"}


def main(argv: Sequence[str] | None = None) -> int:
    """Write the file and say what is in it; 0, or 2 after a message for a mistake of the user's."""
    parser = argparse.ArgumentParser(
        prog="python3 -m sparse_ext.export",
        description="An encoder of a checkpoint as a file for use outside of training.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"{name:8} {what}" for name, what in FORMATS.items()),
    )
    parser.add_argument("format", choices=FORMATS)
    parser.add_argument("checkpoint", help="a file with its args.json beside it")
    parser.add_argument("--encoder", choices=("online", "momentum"), default="online")
    parser.add_argument("--out", help="file to write (slim: folder); by default beside CHECKPOINT")
    parser.add_argument("--half", action="store_true", help="packed: values in float16")
    parser.add_argument(
        "--multiple",
        type=int,
        default=1,
        help="slim: keep as many empty channels as make each width a multiple of this; 16 is best "
        "for ONNX Runtime",
    )
    parser.add_argument("--pattern", default="2:4", help="nm: N:M")
    parser.add_argument("--input_size", type=int, help="image side; by default the dataset's")
    args = parser.parse_args(argv)
    from solo.programs.app import exit_code
    from sparse_ext.extension import register

    register()

    return exit_code(lambda: print(_slim(args) if args.format == "slim" else _write(args)))


def _slim(args: argparse.Namespace) -> str:
    from sparse_ext.export.slim import slim

    done = slim(args.checkpoint, args.out, args.encoder, args.multiple)
    before, after = done.report.parameters
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
            f"features differ from the masked encoder's by {done.difference:.1e} of the largest",
            _wrote(done.path),
        ]
    )


def _write(args: argparse.Namespace) -> str:
    from solo.checkpoints.runs import load_run, weights_file
    from solo.data.catalogue import input_size

    backbone, run = load_run(args.checkpoint, args.encoder)
    source = weights_file(args.checkpoint)
    suffix = _SUFFIX.get(args.format, "safetensors")
    path = Path(args.out or source.with_name(f"{source.stem}-{args.format}.{suffix}"))
    size, lines = args.input_size or input_size(run), []
    if args.format == "dense":
        from solo.checkpoints.exporting import export_encoder

        export_encoder(backbone, path)
    elif args.format == "packed":
        from sparse_ext.export.packed import save_packed

        save_packed(backbone.state_dict(), path, half=args.half)
    elif args.format == "csr":
        from sparse_ext.export.csr import save_csr

        save_csr(backbone.state_dict(), path)
    else:
        from sparse_ext.export.onnx import check_onnx, export_onnx

        if args.format == "nm":
            from sparse_ext.export.nm import check_nm

            report = check_nm(backbone.state_dict(), args.pattern)
            lines.append(
                f"{len(report.layers)} layers are {report.pattern}; tensor cores take "
                f"{len(report.hardware)} of them. trtexec --onnx={path} --sparsity=enable --fp16"
            )
        export_onnx(backbone, path, size)
        lines.append(f"ONNX Runtime's features differ by {check_onnx(backbone, path, size):.1e}")
    return "\n".join([*lines, _wrote(path)])


def _wrote(path: Path) -> str:
    return f"wrote {path} ({path.stat().st_size / 1e6:.2f} MB)"


if __name__ == "__main__":
    sys.exit(main())
