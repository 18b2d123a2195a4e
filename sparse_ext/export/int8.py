# SPDX-License-Identifier: MIT
"""ONNX files in 8-bit integers: static quantisation by ONNX Runtime, from images of a folder.

Weights are quantised per channel and symmetrically, so that zeros stay zeros (2:4 patterns, too);
activations per tensor, by the ranges that calibration images show. The file has QuantizeLinear and
DequantizeLinear nodes (QDQ), which ONNX Runtime, OpenVINO and TensorRT turn into integer kernels.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from solo.errors import CheckpointError, ConfigError
from solo.files.whole import whole_file
from sparse_ext.export.onnx import OnnxEncoder, need
from sparse_ext.prune.images import Images
from sparse_ext.prune.results import NEIGHBOURS, knn_votes

ROUNDS = 7  # passes of which the fastest counts


class Agreement(NamedTuple):
    """How far features are from those of float32, on images that calibration has not seen.

    Attributes:
        cosine: of the features of one image, mean over images.
        neighbours: share of each image's nearest neighbours that are the same, mean over images.
        votes: share of images with the same leave-one-out kNN vote; None without labels.
    """

    cosine: float
    neighbours: float
    votes: float | None


def quantise(source: str | Path, path: str | Path, batches: Sequence[Tensor]) -> Path:
    """Write an ONNX file in 8-bit integers.

    Args:
        source: ONNX in float32, with one input of images.
        path: file to write.
        batches: calibration images as the encoder wants them, each batch (N, 3, H, W).

    Raises:
        ConfigError: onnx or onnxruntime is missing.
        CheckpointError: ONNX Runtime cannot quantise this network.
    """
    need("onnx")
    need("onnxruntime")
    from onnxruntime import quantization as q

    with tempfile.TemporaryDirectory() as folder, whole_file(path) as partial, _quietly():
        folded = Path(folder) / "folded.onnx"
        try:
            # without symbolic shapes: constants are folded, and batch norms into convolutions
            q.quant_pre_process(str(source), str(folded), skip_symbolic_shape=True)
            q.quantize_static(
                str(folded),
                str(partial),
                _reader(q.CalibrationDataReader, batches),
                quant_format=q.QuantFormat.QDQ,
                per_channel=True,
                activation_type=q.QuantType.QInt8,
                weight_type=q.QuantType.QInt8,
                calibrate_method=q.CalibrationMethod.MinMax,
            )
        except (RuntimeError, ValueError, NotImplementedError) as error:
            raise CheckpointError(f"{source}: ONNX Runtime cannot quantise it: {error}") from error
    return Path(path)


def _reader(base: type, batches: Sequence[Tensor]) -> Any:
    """The images in the form that ONNX Runtime reads."""

    class Reader(base):  # type: ignore[misc,valid-type]
        def __init__(self) -> None:
            self.left: Iterator[Tensor] = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.left, None)
            return None if batch is None else {"images": batch.numpy()}

    return Reader()


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without advice on options that are ours to choose."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def agreement(full: Tensor, found: Tensor, labels: Tensor) -> Agreement:
    """Compare features of the same images.

    Args:
        full: (N, F), of the encoder in float32.
        found: (N, F), of the other one.
        labels: (N,), -1 where an image has none.
    """
    n = min(NEIGHBOURS, len(full) - 1)
    near = [_nearest(features, n) for features in (full, found)]
    same = (near[0].unsqueeze(2) == near[1].unsqueeze(1)).any(2).float().mean()
    votes = [knn_votes(features, labels) for features in (full, found)]
    equal = None
    if votes[0] is not None and votes[1] is not None:
        equal = float((votes[0] == votes[1]).float().mean())
    return Agreement(float(F.cosine_similarity(full, found).mean()), float(same), equal)


def _nearest(features: Tensor, n: int) -> Tensor:
    unit = F.normalize(features, dim=1)
    return (unit @ unit.T).fill_diagonal_(-2).topk(n, dim=1).indices


def table(files: dict[str, Path], unseen: Images) -> list[str]:
    """File size, time per image (batch 1, in turns, one thread, the fastest pass) and agreement
    with the first of some ONNX files, as lines of a table."""
    if len(unseen.labels) < 2:
        raise ConfigError("--calibrate: at least 2 images are needed to compare features.")
    encoders = {name: OnnxEncoder(path, threads=1) for name, path in files.items()}
    features = {n: torch.cat([e(b) for b in unseen.batches]) for n, e in encoders.items()}
    seconds = _seconds(encoders, unseen.batches[0][:1])
    first = next(iter(features.values()))
    lines = [f"{'ONNX':8} {'MB':>8} {'ms/image':>9} {'cosine':>8} {'neighbours':>11} {'votes':>7}"]
    for name, path in files.items():
        same = agreement(first, features[name], unseen.labels)
        votes = "-" if same.votes is None else f"{same.votes:.1%}"
        size, taken = path.stat().st_size / 1e6, 1e3 * seconds[name]
        lines.append(
            f"{name:8} {size:8.2f} {taken:9.2f} {same.cosine:8.4f} {same.neighbours:11.1%} "
            f"{votes:>7}"
        )
    return lines


def _seconds(encoders: dict[str, OnnxEncoder], image: Tensor) -> dict[str, float]:
    best = dict.fromkeys(encoders, float("inf"))
    for turn in range(ROUNDS + 1):
        for name, encoder in encoders.items():
            start = time.perf_counter()
            encoder(image)
            taken = time.perf_counter() - start
            best[name] = min(best[name], taken) if turn else best[name]
    return best
