# SPDX-License-Identifier: MIT
"""What an encoder can be exported as: the formats of `python3 -m sparse_ext.export`, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from solo.files.run_args import read_args
from solo.registry import Registry, resolve


class Request(NamedTuple):
    """What one call of the export command asks for.

    Attributes:
        checkpoint: the file that the encoder comes from.
        backbone: the encoder, rebuilt, with its weights and masks.
        path: file to write.
        input_size: side of its images in pixels.
        half: values in float16, where the format has a choice.
        pattern: N:M, where the format asks for one.
        run: configuration of the encoder's run.
        calibrate: folder of images from which ranges of 8-bit integers are taken; None = float32.
        images: how many of them.
    """

    checkpoint: Path
    backbone: nn.Module
    path: Path
    input_size: int
    half: bool = False
    pattern: str = "2:4"
    run: Mapping[str, Any] | None = None
    calibrate: str | None = None
    images: int = 128

    def about(self) -> dict[str, str]:
        """What the file says of the encoder: size, mean, std, class names, how it is built."""
        from solo.checkpoints.described import description

        args = read_args(self.checkpoint)
        return description(args) if args else {}


class Format(NamedTuple):
    """A format of exported files: its writer, suffix and description.

    Attributes:
        what: a line of help.
        write: `write(request)` writes `request.path` and returns lines to print (or None); or
            where that function is: `module:function`.
        suffix: of the file's name; empty for a folder.
    """

    what: str
    write: Callable[[Request], Any] | str
    suffix: str = "safetensors"

    def __call__(self, request: Request) -> list[str]:
        """Write the file; returns lines to print."""
        return list(resolve(self.write)(request) or ())


def register_format(
    name: str, what: str, write: Callable[[Request], Any] | str, suffix: str = "safetensors"
) -> None:
    """Make a format known, so that `python3 -m sparse_ext.export NAME CHECKPOINT` writes it.

    Args:
        name: what users write.
        what: a line of help.
        write: see `Format.write`.
        suffix: of the file's name.

    Raises:
        ConfigError: there is another format of that name.
    """
    FORMATS.register(name, Format(what, write, suffix))


def write_dense(request: Request) -> None:
    """Write the weights as torchvision or timm lay them out, masks folded in."""
    from solo.checkpoints.exporting import export_encoder

    export_encoder(request.backbone, request.path, args=read_args(request.checkpoint))


def write_packed(request: Request) -> None:
    """Write kept values and one bit per weight (`sparse_ext.export.packed`)."""
    from sparse_ext.export.packed import save_packed

    state, about = request.backbone.state_dict(), request.about()
    save_packed(state, request.path, half=request.half, about=about)


def write_csr(request: Request) -> None:
    """Write masked weights as compressed sparse rows (`sparse_ext.export.csr`)."""
    from sparse_ext.export.csr import save_csr

    save_csr(request.backbone.state_dict(), request.path, request.about())


def write_onnx(request: Request) -> list[str]:
    """ONNX, whose features are compared with the encoder's; with `calibrate` also in integers."""
    from sparse_ext.export.onnx import check_onnx, export_onnx

    backbone, path, size = request.backbone, request.path, request.input_size
    export_onnx(backbone, path, size, about=request.about())
    lines = [f"ONNX Runtime's features differ by {check_onnx(backbone, path, size):.1e}"]
    return lines if request.calibrate is None else [*lines, *_integers(request)]


def _integers(request: Request) -> list[str]:
    """A second file beside the first, in 8-bit integers, and how the two compare."""
    from sparse_ext.export.int8 import quantise, table
    from sparse_ext.prune.images import calibration_and_unseen

    seen, unseen = calibration_and_unseen(
        str(request.calibrate),
        request.images,
        0,
        request.run,
        request.input_size,
        key="--calibrate",
    )
    path = request.path.with_name(f"{request.path.stem}-int8{request.path.suffix}")
    quantise(request.path, path, seen.batches)
    return [
        *table({"float32": request.path, "int8": path}, unseen),
        f"on {len(unseen.labels)} images, ranges from {len(seen.labels)}; cosine, nearest "
        f"neighbours and kNN votes compare with float32",
        f"wrote {path}",
    ]


def write_nm(request: Request) -> list[str]:
    """ONNX of an encoder whose groups are all N:M."""
    from sparse_ext.export.nm import check_nm

    report = check_nm(request.backbone.state_dict(), request.pattern)
    return [
        f"{len(report.layers)} layers are {report.pattern}; tensor cores take "
        f"{len(report.hardware)} of them. trtexec --onnx={request.path} --sparsity=enable --fp16",
        *write_onnx(request),
    ]


#: every format that is one file of one encoder
FORMATS: Registry[Format] = Registry(
    "export format",
    {
        "dense": Format("torchvision's or timm's layout, pruned weights as zeros", write_dense),
        "packed": Format("kept values and one bit per weight: the smallest file", write_packed),
        "hub": Format(
            "a folder that timm loads (local-dir:) and a hub takes, with a card",
            "sparse_ext.export.hub:write_hub",
            "",
        ),
        "csr": Format("pruned weights as compressed sparse rows", write_csr),
        "onnx": Format("ONNX, checked in ONNX Runtime", write_onnx, "onnx"),
        "nm": Format("ONNX for 2:4 hardware; refused unless every group fits", write_nm, "onnx"),
    },
)
