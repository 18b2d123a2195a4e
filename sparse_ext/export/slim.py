# SPDX-License-Identifier: MIT
"""A slim encoder as files: `args.json` and safetensors, for every program of solo."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from solo.backbones import input_channels
from solo.checkpoints.files import write_tensors
from solo.errors import CheckpointError, ConfigError
from solo.files.whole import write_json
from sparse_ext.masks.channels.removal import Report, shrink_
from sparse_ext.masks.channels.tracing import Channels
from sparse_ext.masks.encoder import SIDE_BUFFERS

FORMAT = "sparse_ext.slim/1"


@dataclass(frozen=True)
class Slim:
    """A slim encoder and what it was made from.

    Attributes:
        path: of the weights; `args.json` lies beside it.
        report: what went.
        difference: largest difference of outputs on random images, over the largest output.
        cost: MACs per image before and after.
        input_size: side of those images.
        seconds: per image before and after, measured one image at a time.
    """

    path: Path
    report: Report
    difference: float
    cost: tuple[int, int]
    input_size: int
    seconds: tuple[float, float]


def slim(
    checkpoint: str | Path,
    out: str | Path | None = None,
    encoder: str = "online",
    multiple: int = 1,
) -> Slim:
    """Write the encoder in a checkpoint without the channels that masks have emptied.

    Args:
        checkpoint: of a sparse run, with its `args.json` beside it, or the run's folder.
        out: folder to write to; by default `slim` (`slim_momentum`) beside the checkpoint.
        encoder: `online` or `momentum`; the file then holds it as an encoder of its own.
        multiple: keep as many empty channels as make each width a multiple of it.

    Raises:
        ConfigError: `multiple` is not positive.
        CheckpointError: it cannot be read, its masks do not fit its weights, or there is no
            channel that could go.
    """
    from solo.checkpoints.described import description
    from solo.checkpoints.runs import load_run, weights_file
    from solo.data.shown import input_size
    from sparse_ext.cost.per_layer import count
    from sparse_ext.pruning.measuring import seconds

    if multiple < 1:
        raise ConfigError(f"multiple={multiple}: widths are multiples of 1 or more.")
    backbone, run = load_run(checkpoint, encoder)
    size = input_size(run)
    backbone.eval()  # as it will be used: random depth, for one, is traced away
    full, macs = copy.deepcopy(backbone), count(backbone, size).macs_dense
    report = shrink_([backbone], multiple=multiple)
    if not report.removed:
        raise CheckpointError(f"{checkpoint}: nothing to remove. {why_not(full, report)}")
    source = weights_file(checkpoint)
    suffix = "" if encoder == "online" else f"_{encoder}"
    folder = Path(out) if out else source.parent / f"slim{suffix}"
    path = folder / f"{source.stem}-slim{suffix}.safetensors"
    about = {"source": source.name, "encoder": encoder, "sparse": json.dumps(run.get("sparse"))}
    about |= description(run) | {"widths": json.dumps(report.widths)}
    save_slim(backbone, path, about)
    kept = {key: value for key, value in run.items() if key != "sparse"}
    write_json(folder / "args.json", kept)
    costs = macs, count(backbone, size).macs_dense
    before, after = seconds([full, backbone], (3, size, size))
    off = difference(full, backbone, size)
    return Slim(path, report, off, costs, size, (before, after))


def save_slim(net: nn.Module, path: str | Path, about: dict[str, str] | None = None) -> None:
    """Write a slim encoder's weights, with those masks that still have zeros."""
    state: dict[str, Tensor] = {}
    for key, tensor in net.state_dict().items():
        name = key.rpartition(".")[2]
        if name in SIDE_BUFFERS or (name == "mask" and bool(tensor.all())):
            continue
        state[key] = tensor.detach().cpu().contiguous().clone()
    write_tensors(path, state, {"format": FORMAT, **(about or {})})


def load_slim(path: str | Path) -> nn.Module:
    """The slim encoder that `slim` wrote, in eval mode.

    Args:
        path: the file, or its folder.

    Raises:
        CheckpointError: there is none, it is another kind of encoder, or it does not fit the
            `args.json` beside it.
    """
    from solo.checkpoints import load_pretrained
    from sparse_ext.extension import register
    from sparse_ext.masks.channels.widths import MARK

    register()
    net = load_pretrained(path)
    if not hasattr(net, MARK):
        raise CheckpointError(
            f"{path}: this encoder has all of its channels, so it is no slim one: "
            f"`python3 -m sparse_ext.export slim` writes such files. To load any other encoder use "
            f"solo.load_pretrained."
        )
    return net


@torch.no_grad()
def difference(a: nn.Module, b: nn.Module, size: int, images: int = 4) -> float:
    """Largest difference of two encoders' outputs in eval mode, over the largest output."""
    shape = (images, input_channels(a), size, size)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, right = (_evaluate(net, x) for net in (a, b))
    return float((left - right).abs().max() / left.abs().max().clamp(min=1e-12))


def _evaluate(net: nn.Module, x: Tensor) -> Tensor:
    modes = {module: module.training for module in net.modules()}
    result: Any = net.eval()(x)
    for module, mode in modes.items():
        module.training = mode
    return result


def why_not(net: nn.Module, report: Report) -> str:
    """Why no channel of an encoder can go."""
    if report.obstacles:
        facts = [f"{name}: {why}" for name, why in report.obstacles.items()]
        more = f"; ... ({len(facts)} layers in all)" if len(facts) > 3 else ""
        return "; ".join(facts[:3]) + more
    untraced = Channels(net).untraced
    if untraced:
        name, why = next(iter(untraced.items()))
        return f"The channels of {name} cannot be followed: {why}"
    return (
        "Every channel keeps some of its weights: masks of single weights, N:M groups or blocks "
        "rarely empty one. Train with sparse.granularity=filter or block8 and sparse.coupled=true."
    )
