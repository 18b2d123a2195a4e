# SPDX-License-Identifier: MIT
"""What is known of each dataset: classes, sizes, statistics, where it may be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from solo.errors import ConfigError, did_you_mean

_SIZES = {
    "cifar10": (50_000, 10_000),
    "cifar100": (50_000, 10_000),
    "stl10": (105_000, 8_000),
    "voc07": (5_011, 4_952),
    "digits": (2_874, 720),  # two renderings of 1,437 and 360 originals
}


# Side of the images that evaluation shows to an encoder; 224 for the others.
EVALUATION_SIZE = {"cifar10": 32, "cifar100": 32, "digits": 32, "stl10": 96}


def input_size(args: Mapping[str, Any]) -> int:
    """Side of the images that evaluation shows to the encoder of this run."""
    data = args["data"]
    crop = (data.get("augmentations") or {}).get("crop_size")
    return EVALUATION_SIZE.get(data["dataset"]) or crop or 224


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Of the digits: over the training split (two renderings, seed 0).
DIGITS_MEAN, DIGITS_STD = (0.4975, 0.4986, 0.5022), (0.2362, 0.2355, 0.2402)


DATASETS = ("cifar10", "cifar100", "stl10", "imagenet", "imagenet100", "custom", "digits", "voc07")


CIFAR_CLASSES = {"cifar10": 10, "cifar100": 100}


# Channel mean and standard deviation while pretraining, as solo-learn has them.
PRETRAIN_STATS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "stl10": ((0.4914, 0.4823, 0.4466), (0.247, 0.243, 0.261)),
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "imagenet100": (IMAGENET_MEAN, IMAGENET_STD),
    "digits": (DIGITS_MEAN, DIGITS_STD),
}


def pretrain_statistics(
    dataset: str, entry: Mapping[str, Any]
) -> tuple[Sequence[float], Sequence[float]]:
    """Channel mean and standard deviation of views: the dataset's own, else those of the entry of
    `augmentations`, else ImageNet's."""
    own = entry.get("mean", IMAGENET_MEAN), entry.get("std", IMAGENET_STD)
    return PRETRAIN_STATS.get(dataset, own)


def require_dataset(dataset: str) -> str:
    """`dataset` itself if it is supported.

    Raises:
        ConfigError: it is not; the message has the nearest name.
    """
    if dataset not in DATASETS:
        raise ConfigError(
            f"data.dataset: '{dataset}' is not supported. {did_you_mean(dataset, DATASETS)}"
        )
    return dataset


N_CLASSES_PER_DATASET = {
    "cifar10": 10,
    "cifar100": 100,
    "stl10": 10,
    "imagenet": 1000,
    "imagenet100": 100,
    "digits": 10,
}


SUPPORTED_DATASETS = ["cifar10", "cifar100", "stl10", "imagenet", "imagenet100", "custom", "digits"]


DALI_DATASETS = ["imagenet100", "imagenet", "custom"]  # and shards


MULTILABEL_DATASETS = ("voc07",)  # for method=multilabel; no program evaluates on them
