# SPDX-License-Identifier: MIT
"""Calibration images: a few hundred out of a folder, labelled or not, as the encoder wants them."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from solo.data.catalogue import DATASETS
from solo.data.datasets.folders import images_below
from solo.data.datasets.images import readers
from solo.data.shown import reading_of
from solo.errors import DataError

BATCH = 32


class Images(NamedTuple):
    """Images in memory, as the encoder wants them.

    Attributes:
        batches: (n, 3, H, W) each, normalised.
        labels: (N,) number of the folder that each image lies in, -1 where it lies in none.
    """

    batches: list[Tensor]
    labels: Tensor

    def split(self, count: int) -> tuple[Images, Images]:
        """The first `count` images, and the others."""
        pixels = torch.cat(self.batches)
        parts = (slice(count), slice(count, None))
        return tuple(Images(list(pixels[s].split(BATCH)), self.labels[s]) for s in parts)  # type: ignore


def is_embedded(data: str | Path) -> bool:
    """Whether `data` names a data set that needs no files, and is no folder here."""
    name = str(data)
    return name in DATASETS and DATASETS[name].path == "none" and not Path(data).exists()


def of_dataset(name: str, transform: Callable[[Any], Tensor], count: int, seed: int) -> Images:
    """`count` training images of an embedded data set, drawn at random.

    Args:
        name: of the data set.
        transform: PIL image to a normalised tensor (3, H, W).
        count: how many.
        seed: of the draw.
    """
    from solo.data.classification_dataloader import prepare_datasets

    dataset, _ = prepare_datasets(name, transform, transform)
    chosen = random.Random(seed).sample(range(len(dataset)), min(count, len(dataset)))  # type: ignore
    pairs = [dataset[i] for i in chosen]
    pixels = torch.stack([image for image, _ in pairs])
    return Images(list(pixels.split(BATCH)), torch.tensor([int(label) for _, label in pairs]))


def calibration_and_unseen(
    data: str | Path,
    count: int,
    seed: int,
    args: Mapping[str, Any] | None,
    size: int,
    key: str = "--data",
) -> tuple[Images, Images]:
    """Calibration images, and as many that it does not see (the same where there are no others).

    Args:
        data: a folder, or a data set that needs no files.
        count: how many of each.
        seed: of the draw.
        args: configuration of the encoder's run, which says how images look.
        size: side of the images.
        key: what messages call `data`.
    """
    from solo.data.classification_dataloader import folder_transform

    transform = folder_transform(args, size)
    loader, _ = readers(**reading_of(args))
    if is_embedded(data):
        return of_dataset(str(data), transform, 2 * count, seed).split(count)
    paths = draw(data, count, seed, key=key)
    others = draw(data, count, seed, skip=len(paths), key=key) or paths
    seen = load(paths, data, transform, "calibration images", loader)
    return seen, load(others, data, transform, "images to measure on", loader)


def draw(
    folder: str | Path, count: int, seed: int, skip: int = 0, key: str = "--data"
) -> list[Path]:
    """`count` images anywhere below `folder`, drawn at random; fewer if there are no more.

    Args:
        folder: of images.
        count: how many.
        seed: of the draw; equal seeds give one order, of which `skip` are passed over.
        skip: images at the beginning of that order that are left to another use.
        key: what messages call the folder.

    Raises:
        DataError: there is no such folder, or no image in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{key} {folder}: there is no such folder.")
    found = images_below(folder)
    if not found:
        raise DataError(
            f"{key} {folder}: there is no image in it (.jpg, .png, ...; folders inside count)."
        )
    random.Random(seed).shuffle(found)
    return found[skip : skip + count]


def load(
    paths: list[Path],
    folder: str | Path,
    transform: Callable[[Any], Tensor],
    title: str,
    loader: Callable[[Path], Any],
) -> Images:
    """Read images and apply the encoder's own evaluation transform.

    Args:
        paths: of the images, below `folder`.
        folder: whose subfolders are the labels.
        transform: PIL image to a normalised tensor (3, H, W).
        title: of the progress bar.
        loader: from a path to an image.
    """
    names = [path.relative_to(folder).parts for path in paths]
    classes = sorted({parts[0] for parts in names if len(parts) > 1})
    labels = [classes.index(parts[0]) if len(parts) > 1 else -1 for parts in names]
    tensors = [transform(loader(path)) for path in tqdm(paths, title, leave=False)]
    batches = [torch.stack(tensors[i : i + BATCH]) for i in range(0, len(tensors), BATCH)]
    return Images(batches, torch.tensor(labels))
