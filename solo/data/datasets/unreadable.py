# SPDX-License-Identifier: MIT
"""Files of a data set that cannot be decoded: all named in one message, left out if asked."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from solo.data.catalogue import TRAIN_KEY
from solo.data.datasets.folders import keep_items
from solo.data.datasets.images import ReadError, read_pixels
from solo.errors import DataError
from solo.monitoring.console import bar

NAMED = 5  # files that a message names
BLOCK = 1024  # images read ahead, at most


def read_all(dataset: Dataset, threads: int) -> Iterator[Any]:
    """Every image of a pretraining set (items `(index, image, target)`) in order, read by threads.

    Yields:
        What the dataset's transform makes of the image, or the `ReadError` of a broken one.
    """
    return _in_order(lambda index: dataset[index][1], len(dataset), threads)


def _in_order(read: Callable[[int], Any], n: int, threads: int) -> Iterator[Any]:
    """`read(0)`, ..., `read(n - 1)`, or the `ReadError` that is raised instead."""

    def result(index: int) -> Any:
        try:
            return read(index)
        except ReadError as error:
            return error

    with ThreadPoolExecutor(max(1, threads)) as pool:
        starts = range(0, n, BLOCK)
        blocks = (pool.map(result, range(i, min(i + BLOCK, n))) for i in starts)
        yield from bar(chain.from_iterable(blocks), "decoding images", n)


def _broken(read: Callable[[int], Any], n: int, threads: int) -> dict[int, ReadError]:
    results = enumerate(_in_order(read, n, threads))
    return {index: result for index, result in results if isinstance(result, ReadError)}


def without_unreadable(dataset: Dataset, where: str, threads: int, key: str = TRAIN_KEY) -> Dataset:
    """`dataset`, in place, without the files that cannot be decoded; every file is read once.

    Args:
        dataset: from one of the two `prepare_datasets`.
        where: folder or file, for messages.
        threads: that decode.
        key: configuration key that holds it, for messages.

    Raises:
        DataError: nothing is left.
    """
    if isinstance(getattr(dataset, "data", None), np.ndarray):  # decoded already
        return dataset
    transform, dataset.transform = dataset.transform, _nothing
    try:
        broken = _broken(dataset.__getitem__, len(dataset), threads)
    finally:
        dataset.transform = transform
    return leave_out(dataset, broken, where, skip=True, key=key)


def _nothing(image: Any) -> None:
    """Forget the image: that it could be decoded is all that matters."""


def readable_positions(files: Sequence[str], threads: int, folder: Any, key: str) -> list[int]:
    """Positions of the files that can be decoded; every file is read once.

    Args:
        files: of a loader that reads them by itself.
        threads: that decode.
        folder: where they are, for messages.
        key: configuration key that holds it, for messages.

    Raises:
        DataError: nothing is left.
    """
    read = partial(read_pixels, value_range=(0.0, 1.0))
    broken = _broken(lambda index: read(files[index]), len(files), threads)
    _report(broken, len(files), f"'{folder}'", skip=True, key=key)
    return [index for index in range(len(files)) if index not in broken]


def leave_out(
    dataset: Dataset,
    broken: dict[int, ReadError],
    where: str,
    skip: bool,
    key: str = TRAIN_KEY,
) -> Dataset:
    """`dataset`, in place, without its broken items, or an error.

    Args:
        dataset: a data set of files.
        broken: index to error.
        where: folder or file, for messages.
        skip: warn and go on, instead of stopping.
        key: configuration key that holds it, for messages.

    Raises:
        DataError: something is broken and `skip` is off, or nothing is left.
    """
    if not broken:
        return dataset
    _report(broken, len(dataset), where, skip, key)
    return keep_items(dataset, [i for i in range(len(dataset)) if i not in broken])


def _report(broken: dict[int, ReadError], total: int, where: str, skip: bool, key: str) -> None:
    """Warn of broken files, or raise a DataError."""
    if not broken:
        return
    found = f"{key}: {len(broken):,} of {total:,} images in {where} are broken."
    named = [f"  {error}" for error in list(broken.values())[:NAMED]]
    if len(broken) > NAMED:
        named.append(f"  ... and {len(broken) - NAMED:,} more")
    if len(broken) == total:
        action = "Nothing is left."
    elif skip:
        action = "They are left out, as data.skip_unreadable=True asks."
    else:
        action = "Replace them, or leave them out with data.skip_unreadable=True."
    text = "\n".join([f"{found} {action}", *named])
    if not skip or len(broken) == total:
        raise DataError(text)
    warnings.warn(text)
