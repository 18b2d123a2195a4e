# SPDX-License-Identifier: MIT
"""Sizes and channel statistics of a folder of images, from a sample of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from solo.data.datasets.images import ReadError, as_rgb, broken_image
from solo.errors import DataError

SAMPLED = 512  # images that are looked at, evenly over the files


@dataclass(frozen=True)
class Sampled:
    """What a sample of images says of all of them.

    Attributes:
        one_size: (width, height) where all have the same, None otherwise.
        side: median of the shorter sides in pixels.
        grey: no image has a colour.
        mean: of each channel in 0..1, of the images at the size at which they were looked at.
        std: likewise.
    """

    one_size: tuple[int, int] | None
    side: int
    grey: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]


def sample(
    files: Sequence[Path], size: int, key: str = "data.path", value_range: Sequence[float] = ()
) -> Sampled:
    """Look at up to `SAMPLED` images, each brought to `size` x `size`; broken ones do not count.

    The statistics are rounded to three digits and depend on the files alone.

    Args:
        files: of all images, in a fixed order.
        size: side in pixels.
        key: configuration key that holds the folder, for messages.
        value_range: what is black and white in images of int32 or float values.

    Raises:
        DataError: none of them can be read.
    """
    chosen = [
        files[i] for i in np.linspace(0, len(files) - 1, min(SAMPLED, len(files))).astype(int)
    ]
    sizes, pixels, error = [], [], None
    for file in chosen:
        try:
            shape, image = _small(file, size, tuple(value_range) or None)
        except ReadError as refused:
            error = refused
            continue
        sizes.append(shape)
        pixels.append(image)
    if not pixels:
        raise DataError(f"{key}: none of {len(chosen)} images can be read. The last: {error}")
    values = np.stack(pixels).reshape(-1, 3) / 255
    return Sampled(
        one_size=sizes[0] if len(set(sizes)) == 1 else None,
        side=int(np.median([min(shape) for shape in sizes])),
        grey=bool((values == values[:, :1]).all()),
        mean=tuple(round(float(value), 3) for value in values.mean(0)),
        std=tuple(max(round(float(value), 3), 0.001) for value in values.std(0)),
    )


def _small(file: Path, size: int, value_range) -> tuple[tuple[int, int], np.ndarray]:
    """Size of an image, and the image as (size, size, 3) uint8; JPEGs are decoded small."""
    with broken_image(str(file)), open(file, "rb") as opened, Image.open(opened) as image:
        shape = image.size
        if image.format == "JPEG":
            image.draft("RGB", (size, size))
        rgb = as_rgb(image, "ignore", value_range)
        return shape, np.asarray(rgb.resize((size, size), Image.Resampling.BOX))
