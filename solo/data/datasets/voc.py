# SPDX-License-Identifier: MIT
"""PASCAL VOC 2007 classification, read from the folders of the development kit.

    VOC2007/ImageSets/Main/<class>_<split>.txt     lines `<image id> <label>`
    VOC2007/JPEGImages/<image id>.jpg

Labels: 1 = present, -1 = absent, 0 = only "difficult" examples, which no evaluation counts.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from solo.data.datasets.images import read_image
from solo.data.datasets.voc_folder import class_lists, year_folder
from solo.errors import DataError, did_you_mean

SPLITS = ("train", "val", "trainval", "test")


class VOCClassification(Dataset):
    """Items `(image, labels)`; labels int64 (classes,): 1 present, 0 absent, -1 ignored.

    Args:
        root: `VOC2007`, or the `VOCdevkit` that holds it.
        split: train, val, trainval or test.
        transform: applied to the image.
        loader: from a path to an image, see `solo.data.datasets.images.readers`.

    Attributes:
        classes: names, sorted.
        ids: image ids, sorted.
        labels: int64 array (images, classes).

    Raises:
        DataError: a folder or file is missing or malformed.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        transform: Callable | None = None,
        loader: Callable = read_image,
    ):
        if split not in SPLITS:
            raise DataError(f"VOC has no split '{split}'. {did_you_mean(split, SPLITS)}")
        self.root, self.transform, self.loader = year_folder(root), transform, loader
        files = class_lists(root, split)
        self.classes = list(files)
        read = [_read_list(files[name]) for name in self.classes]
        self.ids = sorted(read[0])
        for name, found in zip(self.classes, read, strict=True):
            if sorted(found) != self.ids:
                raise DataError(f"{files[name]} lists other images than {files[self.classes[0]]}")
        self.labels = np.array([[found[i] for found in read] for i in self.ids], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[Any, Tensor]:
        image = self.loader(self.root / "JPEGImages" / f"{self.ids[index]}.jpg")
        image = self.transform(image) if self.transform else image
        return image, torch.from_numpy(self.labels[index])


def _read_list(path: Path) -> dict[str, int]:
    """Image id to 1, 0 or -1 in our sense."""
    meaning = {"1": 1, "-1": 0, "0": -1}
    labels = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2 or words[1] not in meaning:
            raise DataError(f"{path}, line {number}: expected '<image> <1, 0 or -1>', got '{line}'")
        labels[words[0]] = meaning[words[1]]
    return labels
