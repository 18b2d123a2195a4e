# SPDX-License-Identifier: MIT
"""Any data set as one uint8 tensor: arrays as they are, files decoded once by several threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Subset
from torchvision import transforms as T

from solo.data.datasets.folders import item_labels
from solo.data.datasets.images import ReadError
from solo.data.datasets.unreadable import leave_out, read_all
from solo.data.resident.memory import require_host_memory
from solo.data.resident.stored import SMALLEST, Stored
from solo.errors import DataError
from solo.monitoring.console import say


def resident_images(
    dataset: Dataset,
    where: str,
    size: int | None = None,
    skip_unreadable: bool = False,
    threads: int = 4,
    processes: int = 1,
) -> tuple[Tensor, list[int] | None]:
    """All images of a data set without transform, and their labels.

    Args:
        dataset: from `prepare_datasets` with `transform=None`, items `(index, PIL image, target)`.
        where: folder or file, for messages.
        size: bring images of another size to `size` x `size`: the shorter side to `size`, then
            the centre. None: all images have one size already.
        skip_unreadable: leave broken files out, with one warning, instead of stopping.
        threads: that decode.
        processes: of this machine, each of which needs the memory.

    Returns:
        (N, 3, H, W) uint8, and N labels or None for a data set without labels.

    Raises:
        DataError: the images do not fit in memory, have several sizes, or some are broken.
    """
    array = getattr(dataset, "data", None)
    if isinstance(array, np.ndarray):
        return _of_array(array, where, size, processes), item_labels(dataset)
    dataset.transform = _fitted(size)
    began = time.monotonic()
    stored = Stored.of(dataset, size, threads)
    images, broken, fresh = _decoded(dataset, stored, where, threads, processes)
    seconds = time.monotonic() - began
    if len(images) * images[:1].nbytes >= SMALLEST:
        how = f"decoded {fresh:,} of" if fresh else "found"
        say(f"{how} {len(images):,} images in {seconds:.1f} s{_place(stored, fresh)}")
    kept = [index for index in range(len(dataset)) if index not in broken]
    leave_out(dataset, broken, where, skip_unreadable)
    tensor = torch.from_numpy(images)
    return (tensor[kept] if broken else tensor), item_labels(dataset)


def _place(stored: Stored | None, fresh: int) -> str:
    if stored is None or not stored.folder.is_dir():
        return ""
    return f", {'kept for the next run' if fresh else 'decoded by an earlier run'}: {stored.folder}"


def _decoded(
    dataset: Dataset, stored: Stored | None, where: str, threads: int, processes: int
) -> tuple[np.ndarray, dict[int, ReadError], int]:
    """(images (N, 3, H, W), errors of broken ones by position, how many were decoded now)."""
    known = None if stored is None else stored.load()
    images: np.ndarray | None = None
    broken: dict[int, ReadError] = {}
    wanted: Sequence[int] = range(len(dataset))
    if known is not None:
        images, wanted, messages = known
        require_host_memory(len(dataset), images.shape[1:], where, processes)
        broken = {i: ReadError(text) for i, text in messages.items() if i not in {*wanted}}
    for index, image in zip(wanted, read_all(Subset(dataset, wanted), threads), strict=True):
        if isinstance(image, ReadError):
            broken[index] = image
            continue
        if images is None:
            require_host_memory(len(dataset), image.shape, where, processes)
            images = np.empty((len(dataset), *image.shape), dtype=np.uint8)
        _require_same_size(where, images.shape[1:], image.shape, index)
        images[index] = image
    if images is None:
        leave_out(dataset, broken, where, skip=False)
        raise DataError(f"data.train_path: there are no images in {where}")
    if stored is not None and len(wanted):
        stored.save(images, {i: str(error) for i, error in broken.items()})
    return images, dict(sorted(broken.items())), len(wanted)


def _of_array(array: np.ndarray, where: str, size: int | None, processes: int) -> Tensor:
    """(N, H, W, 3) or (N, 3, H, W) uint8 to a tensor (N, 3, H, W) of its own."""
    if array.shape[-1] == 3:
        array = array.transpose(0, 3, 1, 2)
    sides = array.shape[2:] if size is None else (size, size)
    require_host_memory(len(array), (3, *sides), where, processes)
    if sides != array.shape[2:]:
        fit = _fitted(size)
        array = np.stack([fit(Image.fromarray(image.transpose(1, 2, 0))) for image in array])
    return torch.from_numpy(np.array(array, order="C"))


def _fitted(size: int | None) -> Callable[[Image.Image], np.ndarray]:
    """From a PIL image to (3, H, W) uint8, of side `size` when it is given."""
    steps = [T.Resize(size, T.InterpolationMode.BICUBIC), T.CenterCrop(size)] if size else []
    fit = T.Compose(steps)

    def to_array(image: Image.Image | Tensor) -> np.ndarray:
        if isinstance(image, Tensor):  # of other channels than three
            return np.asarray(image if image.shape[1:] == (size, size) else fit(image))
        if image.size != (size, size):
            image = fit(image)
        return np.array(image.convert("RGB")).transpose(2, 0, 1)

    return to_array


def _require_same_size(where: str, one: tuple, other: tuple, index: int) -> None:
    if tuple(one) == tuple(other):
        return
    sizes = [f"{shape[2]}x{shape[1]}" for shape in (one, other)]
    raise DataError(
        f"data.format=resident needs images of one size; {where} has {sizes[0]} and {sizes[1]} "
        f"(image {index}). Set data.resident_size to the side that they are brought to (the "
        "shorter side is resized to it, then the centre is cut out), or use "
        "data.format=image_folder."
    )
