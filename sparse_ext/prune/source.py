# SPDX-License-Identifier: MIT
"""The dense encoder that is to be pruned: out of a run, a file of any origin, or timm."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from solo.backbones import build_encoder
from solo.checkpoints.files import read_args
from solo.checkpoints.init_from import TIMM, init_encoder, timm_look
from solo.checkpoints.runs import load_run, weights_file
from solo.data.shown import input_size
from solo.errors import CheckpointError
from sparse_ext.masks.masked_layers import masked_layers


class Source(NamedTuple):
    """An encoder and what is known of it.

    Attributes:
        encoder: dense, in evaluation mode.
        args: configuration as a run's `args.json` holds it.
        size: side of the images that it is evaluated on.
        report: lines about where its weights came from.
    """

    encoder: nn.Module
    args: dict[str, Any]
    size: int
    report: str


def open_source(
    source: str,
    which: str = "online",
    backbone: str | None = None,
    kwargs: dict[str, Any] | None = None,
    image_size: int | None = None,
) -> Source:
    """Open what is to be pruned.

    Args:
        source: the folder or checkpoint of a run, a weight file, or `timm:NAME`.
        which: `online` or `momentum` encoder of a run.
        backbone: name of the encoder in a weight file that is no run's.
        kwargs: its options.
        image_size: side of its images; None = the run's own, or 224.

    Raises:
        CheckpointError: it cannot be opened, or it is sparse already.
    """
    is_run = not source.startswith(TIMM) and read_args(weights_file(source)) is not None
    if is_run:
        encoder, args = load_run(source, which)
        report = f"{which} encoder of {source}"
        sections = {"sparse", "gating"}
        args = {key: value for key, value in args.items() if key not in sections}
    else:
        encoder, args, report = _foreign(source, backbone, kwargs or {}, image_size)
    if masked_layers(encoder):
        raise CheckpointError(
            f"{source} is sparse already: prune the dense encoder that it came from, or train on "
            f"with +sparse= and init_from={source}."
        )
    return Source(encoder.eval(), args, image_size or input_size(args), report)


def _foreign(
    source: str, backbone: str | None, kwargs: dict[str, Any], image_size: int | None
) -> tuple[nn.Module, dict[str, Any], str]:
    from omegaconf import OmegaConf

    if backbone is None and source.startswith(TIMM):
        backbone = source.removeprefix(TIMM).partition(".")[0]
    if backbone is None:
        raise CheckpointError(
            f"{source}: there is no args.json beside it, so nothing says which encoder it is. Name "
            f"it: --backbone resnet50, or any name of timm's."
        )
    args: dict[str, Any] = {
        "name": Path(source.replace(":", "-")).stem,
        "method": "simclr",  # of ViTs it decides which variant; nothing was trained with it here
        "backbone": {"name": backbone, "kwargs": kwargs},
        "data": {"dataset": "custom", "augmentations": _look(source, image_size)},
    }
    encoder = build_encoder(OmegaConf.create(args))
    return encoder, args, str(init_encoder(encoder, source))


def _look(source: str, image_size: int | None) -> dict[str, Any]:
    """Side, mean and std of an encoder's images, as timm knows them of its own weights."""
    look = {"crop_size": 224} | (timm_look(source) if source.startswith(TIMM) else {})
    return look | ({"crop_size": image_size} if image_size else {})
