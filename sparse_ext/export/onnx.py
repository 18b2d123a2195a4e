# SPDX-License-Identifier: MIT
"""ONNX files, checked in ONNX Runtime (`pip install onnx onnxruntime`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from solo.backbones import input_channels
from solo.data.preprocess import Preprocess
from solo.errors import CheckpointError, ConfigError
from solo.files.run_args import EMBEDDED
from solo.files.whole import whole_file
from sparse_ext.export.slim import difference

OPSET = 17
TOLERANCE = 1e-4  # of the largest output; both sides compute in float32


def export_onnx(
    net: nn.Module,
    path: str | Path,
    size: int,
    opset: int = OPSET,
    about: Mapping[str, str] | None = None,
) -> Path:
    """Write an encoder as ONNX: `images` (N, C, size, size) to `features` (N, F), any N.

    Masks leave no trace: pruned weights are zeros in the file. ONNX Runtime computes with them as
    with others; TensorRT finds 2:4 patterns by itself (`trtexec --onnx=FILE --sparsity=enable`).
    `about` becomes metadata of the file, see `solo.checkpoints.described`.

    Raises:
        ConfigError: the package onnx is missing.
    """
    onnx = need("onnx")
    training = net.training
    images = torch.zeros(2, input_channels(net), size, size)
    with whole_file(path) as partial:
        torch.onnx.export(
            net.eval().cpu(),
            (images,),
            str(partial),
            input_names=["images"],
            output_names=["features"],
            dynamic_axes={"images": {0: "batch"}, "features": {0: "batch"}},
            opset_version=opset,
            dynamo=False,
        )
        if about:
            model = onnx.load(str(partial))
            onnx.helper.set_model_props(model, dict(about))
            onnx.save(model, str(partial))
    net.train(training)
    return Path(path)


class OnnxEncoder(nn.Module):
    """An ONNX file in ONNX Runtime on the CPU, called like an encoder.

    Args:
        path: the file.
        threads: of ONNX Runtime; 0 = its own choice.

    Raises:
        ConfigError: the package onnxruntime is missing.
    """

    def __init__(self, path: str | Path, threads: int = 0) -> None:
        super().__init__()
        runtime = need("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = runtime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )

    @property
    def about(self) -> dict[str, str]:
        """What the file says of the encoder, see `solo.checkpoints.described`."""
        return dict(self.session.get_modelmeta().custom_metadata_map)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) to (N, F)."""
        (features,) = self.session.run(None, {"images": images.numpy()})
        return torch.from_numpy(features)


def open_onnx(path: str | Path) -> OnnxEncoder:
    """An exported ONNX file as an encoder with its `preprocess`.

    Raises:
        CheckpointError: ONNX Runtime cannot read the file.
        ConfigError: the package onnxruntime is missing.
    """
    need("onnxruntime")
    try:
        encoder = OnnxEncoder(path)
    except Exception as error:  # of a class of its own for each cause
        raise CheckpointError(f"{path}: ONNX Runtime cannot read it ({error}).") from error
    if text := encoder.about.get(EMBEDDED):
        encoder.preprocess = Preprocess(json.loads(text))  # type: ignore[assignment]
    return encoder


def check_onnx(net: nn.Module, path: str | Path, size: int) -> float:
    """Largest difference between the encoder and the file in ONNX Runtime, over the largest output.

    Raises:
        ConfigError: the package onnxruntime is missing.
        CheckpointError: the difference is above `TOLERANCE`.
    """
    off = difference(net, OnnxEncoder(path), size)
    if off > TOLERANCE:
        raise CheckpointError(f"{path}: ONNX Runtime's features are off by {off:.1e}.")
    return off


def need(package: str) -> Any:
    """The package, or ConfigError with the command that installs it."""
    from importlib import import_module

    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ConfigError(
            f"ONNX needs the package {package}: pip install onnx onnxruntime"
        ) from error
