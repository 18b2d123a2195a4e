# SPDX-License-Identifier: MIT
"""A warning about images so long or narrow that RandomResizedCrop mostly takes its way out.

After ten boxes that do not fit torchvision takes one central box. At 8:1 that happens in 59% of the
draws, at 20:1 in all of them, and both views of an image then show the same place.
"""

from __future__ import annotations

import copy
import io
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from solo.data.views.augmentation_keys import checked_augmentation
from solo.data.views.batched.crop import RATIO, TRIES

LOOKED_AT = 1000  # images whose size is read, evenly over a data set
OFTEN = 0.1  # share of the draws from which on an image is named


def fallback_share(height: int, width: int, scale: Sequence[float]) -> float:
    """The share of the draws of RandomResizedCrop in which none of the ten tries fits.

    Args:
        height: of the image in pixels.
        width: likewise.
        scale: smallest and largest share of the area.

    >>> round(fallback_share(100, 800, (0.08, 1.0)), 2)
    0.59
    """
    low, high = (math.log(side) for side in RATIO)
    ratio = np.exp(np.linspace(low, high, 1001))
    area = height * width
    # A side is rounded, so that half a pixel more still fits.
    largest = np.minimum((width + 0.5) ** 2 / (area * ratio), (height + 0.5) ** 2 * ratio / area)
    spread = max(scale[1] - scale[0], 1e-9)
    fits = np.clip((largest - scale[0]) / spread, 0, 1).mean()
    return float((1 - fits) ** TRIES)


def image_sizes(dataset: Any) -> list[tuple[int, int]]:
    """Height and width of up to `LOOKED_AT` images of a data set of files; only headers are read.

    Args:
        dataset: from `solo.data.pretrain_dataloader.prepare_datasets`.

    Returns:
        Nothing for data sets of decoded images, which have one size.
    """
    probe = copy.copy(dataset)
    probe.transform = None
    for reader, look in (("loader", _size_of_file), ("decode", _size_of_bytes)):
        if hasattr(probe, reader):
            setattr(probe, reader, look)
            break
    else:
        return []
    chosen = np.unique(np.linspace(0, len(probe) - 1, LOOKED_AT).astype(int))
    found = (probe[int(index)][1] for index in chosen)
    return [size for size in found if size is not None]


def file_sizes(paths: Sequence[str | Path]) -> list[tuple[int, int]]:
    """Height and width of up to `LOOKED_AT` of the image files."""
    chosen = np.unique(np.linspace(0, len(paths) - 1, LOOKED_AT).astype(int))
    return [size for index in chosen if (size := _size_of_file(paths[index])) is not None]


def _size_of_file(path: str | Path) -> tuple[int, int] | None:
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except Exception:  # a broken file is named where it is decoded
        return None


def _size_of_bytes(encoded: bytes, name: str) -> tuple[int, int] | None:
    return _size_of_file(io.BytesIO(encoded))  # type: ignore[arg-type]


def warn_of_long_images(
    sizes: Iterable[tuple[int, int]], entries: Sequence[Mapping[str, Any]]
) -> None:
    """Warn once if images fall back to the central crop in more than a tenth of the draws.

    Args:
        sizes: heights and widths of images, a sample of the data set.
        entries: of `augmentations`; those with `rrc.fallback: random` need no warning.
    """
    sizes = list(sizes)
    for number, entry in enumerate(entries):
        rrc = checked_augmentation(entry)["rrc"]
        if not rrc["enabled"] or rrc["fallback"] != "center" or not sizes:
            continue
        scale = rrc["crop_min_scale"], rrc["crop_max_scale"]
        known = {size: fallback_share(*size, scale) for size in set(sizes)}
        shares = np.array([known[size] for size in sizes])
        often = int((shares > OFTEN).sum())
        if not often:
            continue
        height, width = sizes[int(shares.argmax())]
        warnings.warn(
            f"data.train_path: {often / len(sizes):.1%} of the images ({often:,} of {len(sizes):,} "
            f"looked at) are so long or narrow that RandomResizedCrop takes the same central crop "
            f"in more than {OFTEN:.0%} of the draws (at {width}x{height} in {shares.max():.0%}; "
            f"{shares.mean():.1%} of all draws): their views then show the same place. "
            f"++augmentations.{number}.rrc.fallback=random takes a random place instead."
        )
        return
