# SPDX-License-Identifier: MIT
"""Builders of the data sets that have a name and a form of their own; see `solo.data.catalogue`."""

from __future__ import annotations

from pathlib import Path

from torch.utils.data import Dataset
from torchvision.datasets import CIFAR10, CIFAR100, STL10

from solo.data.catalogue import Wanted
from solo.data.datasets.digits import DigitsDataset
from solo.data.datasets.folders import named_torchvision
from solo.data.datasets.images import read_image
from solo.data.datasets.voc import VOCClassification
from solo.data.datasets.voc_folder import class_lists


def _cifar(name: str, cls: type, wanted: Wanted) -> Dataset:
    options = {"train": wanted.split != "val", "transform": wanted.transform}
    return named_torchvision(name, wanted.path, wanted.download, wanted.key, cls, **options)


def cifar10(wanted: Wanted) -> Dataset:
    """CIFAR-10 in torchvision's files."""
    return _cifar("cifar10", CIFAR10, wanted)


def cifar100(wanted: Wanted) -> Dataset:
    """CIFAR-100 in torchvision's files."""
    return _cifar("cifar100", CIFAR100, wanted)


def stl10(wanted: Wanted) -> Dataset:
    """STL-10; pretraining takes all training images, with `no_labels` the unlabelled ones."""
    split = {"train": "train", "val": "test"}.get(wanted.split, "train+unlabeled")
    if wanted.split == "pretrain" and wanted.no_labels:
        split = "unlabeled"
    options = {"split": split, "transform": wanted.transform}
    return named_torchvision("stl10", wanted.path, wanted.download, wanted.key, STL10, **options)


def digits(wanted: Wanted) -> Dataset:
    """scikit-learn's digits, rendered anew."""
    return DigitsDataset(train=wanted.split != "val", transform=wanted.transform)


def voc07(wanted: Wanted) -> Dataset:
    """VOC 2007: trainval, and test for validation; a target is a row of labels."""
    split = "test" if wanted.split == "val" else "trainval"
    return VOCClassification(wanted.path, split, wanted.transform, wanted.loader or read_image)


def voc07_classes(path: Path) -> int:
    """How many classes the lists of trainval have."""
    return len(class_lists(path, "trainval"))
