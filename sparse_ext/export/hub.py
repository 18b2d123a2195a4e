# SPDX-License-Identifier: MIT
"""A folder that timm loads and that can be pushed to a model hub as it is.

    timm.create_model("local-dir:FOLDER", pretrained=True)

`config.json` names timm's architecture and its arguments, `model.safetensors` holds the weights
with masks folded in (pruned weights are zeros), `README.md` is a card with what was measured.
"""

from __future__ import annotations

import copy
import csv
import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import timm
import torch
from torch import nn

from solo.backbones import features_dim, input_channels
from solo.checkpoints.described import class_names
from solo.checkpoints.exporting import export_encoder
from solo.checkpoints.files import read_args
from solo.data.catalogue import info_of
from solo.errors import CheckpointError
from solo.files.whole import write_json, write_text
from sparse_ext.cost.per_layer import count
from sparse_ext.export.formats import Request
from sparse_ext.export.timm_arguments import arguments
from sparse_ext.masks.channels.widths import MARK
from sparse_ext.masks.masking import measured

#: our names of encoders whose layout is that of a timm model of another name
_TIMM = {
    **{f"vit_{size}": f"vit_{size}_patch16_224" for size in ("tiny", "small", "base", "large")},
    **{f"swin_{size}": f"swin_{size}_patch4_window7_224" for size in ("tiny", "small", "base")},
    "swin_large": "swin_large_patch4_window7_224",
}
_ACCURACIES = ("val_acc1", "val_knn_acc1", "pruned/knn_acc1")
#: largest difference of features, over the largest feature, that counts as the same network
_SAME = 1e-4


def write_hub(request: Request) -> list[str]:
    """Write the folder `request.path`; its model's features have been compared with the encoder's.

    Returns:
        lines that say how to load it.

    Raises:
        CheckpointError: timm has no model of this layout; the message says what differs.
    """
    args = read_args(request.checkpoint) or {}
    backbone = args.get("backbone") or {}
    name, kwargs = str(backbone.get("name")), dict(backbone.get("kwargs") or {})
    architecture, encoder = _TIMM.get(name, name), request.backbone
    if hasattr(encoder, MARK):  # of a slim encoder: timm builds its widths, or refuses its weights
        encoder = copy.deepcopy(encoder)
        delattr(encoder, MARK)
        kwargs |= arguments(encoder)
    model = _timm_model(architecture, kwargs, name)
    with TemporaryDirectory() as scratch:  # nothing appears for a network that timm cannot load
        weights = export_encoder(encoder, Path(scratch) / "model.safetensors")
        difference = _compare(model, encoder, weights, request.input_size, architecture)
    export_encoder(encoder, request.path / "model.safetensors", args=args)
    mean, std = _statistics(args)
    config = {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": features_dim(request.backbone),
        "model_args": kwargs,
        "pretrained_cfg": {
            "input_size": [
                input_channels(request.backbone),
                request.input_size,
                request.input_size,
            ],
            "fixed_input_size": "vit" in architecture or "swin" in architecture,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "mean": list(mean),
            "std": list(std),
            "num_classes": 0,
        },
    }
    if names := class_names(args):
        config["label_names"] = names
    write_json(request.path / "config.json", config)
    write_text(request.path / "README.md", _card(request, args, architecture))
    return [
        f'timm.create_model("local-dir:{request.path}", pretrained=True) puts out the encoder\'s '
        f"features; they differ by {difference:.1e} of the largest"
    ]


def _timm_model(architecture: str, kwargs: dict[str, Any], name: str) -> nn.Module:
    if not timm.is_model(architecture):
        raise CheckpointError(
            f"backbone {name} has no counterpart in timm, so there is no folder that timm loads: "
            f"use the formats dense, packed or onnx."
        )
    try:
        return timm.create_model(architecture, num_classes=0, **kwargs)
    except TypeError as error:
        raise CheckpointError(
            f"timm's {architecture} does not take backbone.kwargs={kwargs} ({error}), so there is "
            f"no folder that timm loads: use the formats dense, packed or onnx."
        ) from error


@torch.no_grad()
def _compare(
    model: nn.Module, encoder: nn.Module, weights: Path, size: int, architecture: str
) -> float:
    """Largest difference of features over the largest feature."""
    from safetensors.torch import load_file

    try:
        model.load_state_dict(load_file(weights))
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:3]]
        raise CheckpointError(
            f"the encoder is not laid out like timm's {architecture} ({' '.join(lines)[:200]}); a "
            f"ResNet with a 3x3 stem for small images, or of another width, has no counterpart "
            f"there, and a slim encoder only where all blocks have lost the same share of hidden "
            f"channels. Use the formats dense, packed or onnx."
        ) from error
    shape = (2, input_channels(encoder), size, size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    modes = {module: module.training for module in encoder.modules()}
    ours, theirs = encoder.eval()(images), model.eval()(images)
    for module, mode in modes.items():
        module.training = mode
    difference = float((ours - theirs).abs().max() / ours.abs().max().clamp(min=1e-12))
    if not difference < _SAME:
        raise CheckpointError(
            f"timm's {architecture} takes the weights and puts out other features (difference "
            f"{difference:.1e} of the largest): the networks compute something else. Use the "
            f"formats dense, packed or onnx."
        )
    return difference


def _statistics(args: Mapping[str, Any]) -> tuple[Any, Any]:
    entry = (args.get("augmentations") or [{}])[0]
    info = info_of((args.get("data") or {}).get("dataset") or "custom")
    mean, std = info.evaluation_statistics
    return entry.get("mean") or mean, entry.get("std") or std


def _card(request: Request, args: Mapping[str, Any], architecture: str) -> str:
    """A model card: what it is, how it was made, what was measured; nothing that was not."""
    table = count(request.backbone, request.input_size)
    sparsity = measured(request.backbone).get("sparsity")
    rows = {
        "architecture": f"timm `{architecture}`",
        "images": f"{request.input_size} x {request.input_size}",
        "trained by": str(args.get("method")),
        "data set": str((args.get("data") or {}).get("dataset")),
        "parameters": f"{table.parameters:,}, {table.parameters_kept:,} not zero",
        "multiply-accumulates per image": f"{table.macs_dense:,} with every weight, "
        f"{table.macs_effective:,.0f} of kept weights (counted, not timed)",
    }
    if sparsity is not None:
        rows["sparsity of the prunable layers"] = f"{sparsity:.2%}"
    if pruned := args.get("pruned"):
        rows["pruned by"] = f"{pruned['method']}, {pruned['granularity']}, without training"
    rows |= {f"`{key}` (last logged)": value for key, value in _figures(request.checkpoint).items()}
    lines = [f"| {key} | {value} |" for key, value in rows.items()]
    return "\n".join(
        [
            "---",
            "library_name: timm",
            "tags: [image-feature-extraction, timm]",
            "---",
            "",
            f"# {args.get('name', architecture)}",
            "",
            "Features of images from a self-supervised vision encoder. Pruned weights are "
            "stored as zeros; dense kernels multiply with them.",
            "",
            "| | |",
            "|---|---|",
            *lines,
            "",
            "```python",
            "import timm",
            'model = timm.create_model("local-dir:PATH", pretrained=True).eval()',
            "```",
            "",
        ]
    )


def _figures(checkpoint: Path) -> dict[str, str]:
    """Accuracies that the run logged last, from its metrics.csv."""
    file = checkpoint.parent / "metrics.csv"
    if not file.is_file():
        return {}
    with file.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    found = {key: [r[key] for r in rows if r.get(key)] for key in _ACCURACIES}
    return {key: json.dumps(round(float(v[-1]), 2)) for key, v in found.items() if v}
