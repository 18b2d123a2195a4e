# SPDX-License-Identifier: MIT
"""Files of a data set that cannot be decoded: all named in one message, left out if asked."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from solo.data.datasets.folders import keep_items
from solo.data.datasets.images import ReadError
from solo.errors import DataError
from solo.monitoring.console import bar

NAMED = 5  # files that a message names
BLOCK = 1024  # images read ahead, at most


def read_all(dataset: Dataset, threads: int) -> Iterator[Any]:
    """Every image of a pretraining set (items `(index, image, target)`) in order, read by threads.

    Yields:
        What the dataset's transform makes of the image, or the `ReadError` of a broken one.
    """

    def read(index: int) -> Any:
        try:
            return dataset[index][1]
        except ReadError as error:
            return error

    with ThreadPoolExecutor(max(1, threads)) as pool:
        starts = range(0, len(dataset), BLOCK)
        blocks = (pool.map(read, range(i, min(i + BLOCK, len(dataset)))) for i in starts)
        yield from bar(chain.from_iterable(blocks), "decoding images", len(dataset))


def without_unreadable(dataset: Dataset, where: str, threads: int) -> Dataset:
    """`dataset`, in place, without the files that cannot be decoded; every file is read once.

    Args:
        dataset: from `solo.data.pretrain_dataloader.prepare_datasets`.
        where: folder or file, for messages.
        threads: that decode.

    Raises:
        DataError: nothing is left.
    """
    if isinstance(getattr(dataset, "data", None), np.ndarray):  # decoded already
        return dataset
    transform, dataset.transform = dataset.transform, _nothing
    try:
        broken = {
            index: result
            for index, result in enumerate(read_all(dataset, threads))
            if isinstance(result, ReadError)
        }
    finally:
        dataset.transform = transform
    return leave_out(dataset, broken, where, skip=True)


def _nothing(image: Any) -> None:
    """Forget the image: that it could be decoded is all that matters."""


def leave_out(dataset: Dataset, broken: dict[int, ReadError], where: str, skip: bool) -> Dataset:
    """`dataset`, in place, without its broken items, or an error.

    Args:
        dataset: a data set of files.
        broken: index to error.
        where: folder or file, for messages.
        skip: warn and go on, instead of stopping.

    Raises:
        DataError: something is broken and `skip` is off, or nothing is left.
    """
    if not broken:
        return dataset
    found = f"data.train_path: {len(broken):,} of {len(dataset):,} images in {where} are broken."
    named = [f"  {error}" for error in list(broken.values())[:NAMED]]
    if len(broken) > NAMED:
        named.append(f"  ... and {len(broken) - NAMED:,} more")
    if len(broken) == len(dataset):
        action = "Nothing is left to train on."
    elif skip:
        action = "They are left out, as data.skip_unreadable=True asks."
    else:
        action = "Replace them, or leave them out with data.skip_unreadable=True."
    text = "\n".join([f"{found} {action}", *named])
    if not skip or len(broken) == len(dataset):
        raise DataError(text)
    warnings.warn(text)
    return keep_items(dataset, [i for i in range(len(dataset)) if i not in broken])
