# SPDX-License-Identifier: MIT
"""What images evaluation shows to an encoder: as large, and normalised, as it was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from solo.data.catalogue import (
    DEFAULT_SIDE,
    IMAGENET_MEAN,
    IMAGENET_STD,
    DatasetInfo,
    known,
    pretrain_statistics,
)

CROP_MIN_SCALE = 0.08  # of random crops in evaluation's training, as everyone trains on ImageNet


@dataclass(frozen=True)
class Shown:
    """Side in pixels, and mean and standard deviation of each channel in 0..1."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def shown(
    info: DatasetInfo,
    trained: Mapping[str, Any] | None,
    size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Shown:
    """How evaluation on a data set shows its images to the encoder of a run.

    What the user asks for comes first. Images of any size are shown as large as the run's views
    (the large ones) were, and without statistics of their own they are normalised as those were.
    A data set whose images have one size and known statistics keeps both for an encoder that comes
    from elsewhere, as the published protocols do; one that was trained on it sees its views' size.

    Args:
        info: the record of the data set, see `solo.data.catalogue.known`.
        trained: configuration of the run (`args.json`), None where there is none.
        size: side that the user asks for.
        mean: of each channel, as the user asks.
        std: of each channel, as the user asks.
    """
    side, own_mean, own_std = _trained_on(trained)
    same = trained is not None and _data(trained).get("dataset") == info.name
    fitting = side if same or info.side is None else None
    if info.eval_mean or info.mean:
        own_mean, own_std = info.evaluation_statistics
    return Shown(
        size or fitting or info.side or DEFAULT_SIDE,
        tuple(mean or own_mean or IMAGENET_MEAN),
        tuple(std or own_std or IMAGENET_STD),
    )


def reading_of(trained: Mapping[str, Any] | None) -> dict[str, Any]:
    """How a run has read its images, as options of `solo.data.datasets.images.readers`.

    Args:
        trained: configuration of the run (`args.json`), None where there is none.
    """
    data = _data(trained or {})
    return {
        "exif": data.get("exif") or "ignore",
        "value_range": data.get("value_range"),
        "channels": channels_of(trained),
    }


def channels_of(args: Mapping[str, Any] | None) -> int:
    """Number of channels of a run's images, which its `backbone.kwargs.in_chans` says.

    >>> channels_of({"backbone": {"name": "resnet18", "kwargs": {"in_chans": 1}}})
    1
    """
    backbone = (args or {}).get("backbone")
    channels = ((backbone or {}).get("kwargs") or {}).get("in_chans")
    return 3 if channels is None else channels


def _data(args: Mapping[str, Any]) -> Mapping[str, Any]:
    return args.get("data") or {}


def _trained_on(args: Mapping[str, Any] | None) -> tuple[Any, Any, Any]:
    """Side, mean and std of a run's images; None for what it does not say."""
    if args is None:
        return None, None, None
    info, data = known(_data(args).get("dataset")), _data(args)
    views = args.get("augmentations")
    if views and not isinstance(views, (str, Mapping)):  # a pretraining
        large = max(views, key=lambda view: view.get("crop_size") or 0)
        mean, std = pretrain_statistics(info.name, large)
        return data.get("image_size") or large.get("crop_size"), mean, std
    return _tested_on(info, data)


def _tested_on(info: DatasetInfo, data: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """The same of a linear evaluation or fine-tuning."""
    views = data.get("augmentations") or {}
    side = data.get("image_size") or info.side or views.get("crop_size")
    return side, views.get("mean"), views.get("std")


def input_size(args: Mapping[str, Any]) -> int:
    """Side of the images that evaluation shows to the encoder of this run."""
    return shown(known(_data(args).get("dataset")), args).size
