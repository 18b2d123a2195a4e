# SPDX-License-Identifier: MIT
"""Crops and resizes of DALI pipelines by the laws of torchvision and Pillow.

DALI's own `random_resized_crop` draws other boxes and rounds sizes and places differently. Here
the box is drawn by arithmetic on small tensors, cut out, and resized. What stays different is the
outermost pixels: DALI repeats the edge of the crop, Pillow renormalises the weights inside it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from nvidia.dali import fn, types
from nvidia.dali import math as dm
from nvidia.dali.pipeline import do_not_convert

from solo.data.views.batched.crop import RATIO, TRIES, rows_come_first


@do_not_convert
def sides(images):
    """Height and width of images (H, W, C), as int32 scalars."""
    shape = fn.cast(images.shape(), dtype=types.INT32)
    return shape[0], shape[1]


def drawn_box():
    """The (22,) uniform numbers of a box, for `crop_box`."""
    return fn.random.uniform(range=[0.0, 1.0], shape=[2 * TRIES + 2])


@do_not_convert
def crop_box(height, width, u, scale: tuple[float, float], fallback: str):
    """The box of RandomResizedCrop, by the law of `solo.data.views.batched.crop.crop_boxes`.

    Args:
        height: of the image.
        width: of the image.
        u: (22,) uniform numbers: ten areas, ten log ratios, two positions.
        scale: smallest and largest share of the area.
        fallback: `center` or `random`, where the box lies when no try has fitted.

    Returns:
        top and left, height and width: int32 tensors (2,) and (2,).
    """
    low, high = (math.log(side) for side in RATIO)
    area = fn.cast(height * width, dtype=types.FLOAT) * (
        scale[0] + (scale[1] - scale[0]) * u[:TRIES]
    )
    ratio = dm.exp(low + (high - low) * u[TRIES : 2 * TRIES])
    w = dm.floor(dm.sqrt(area * ratio) + 0.5)
    h = dm.floor(dm.sqrt(area / ratio) + 0.5)
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    rank = fits * types.Constant(np.arange(TRIES, 0, -1, dtype=np.int32))
    best = fn.reductions.max(rank)
    fitted, first = best > 0, rank == best
    # The whole of the image that the ratios allow: round(4 / 3 * side) in whole numbers.
    central_h = dm.min(height, (8 * width + 3) // 6)
    central_w = dm.min(width, (8 * height + 3) // 6)
    h = _choice(fitted, fn.reductions.sum(h * first), central_h)
    w = _choice(fitted, fn.reductions.sum(w * first), central_w)
    top, left = _whole_below(u[-2], height - h + 1), _whole_below(u[-1], width - w + 1)
    if fallback == "center":
        top = _choice(fitted, top, (height - h) // 2)
        left = _choice(fitted, left, (width - w) // 2)
    return fn.stack(top, left), fn.stack(h, w)


def _choice(condition, one, other):
    """int32 scalar `one` where the bool scalar `condition` holds, else `other`."""
    return fn.cast(condition * one + (condition ^ True) * other, dtype=types.INT32)


def _whole_below(u, n):
    """A uniform whole number 0, ..., n - 1 from a uniform number on [0, 1)."""
    return dm.min(fn.cast(dm.floor(u * n), dtype=types.INT32), n - 1)


@do_not_convert
def resized(images, height, width, out_height, out_width, interpolation: types.DALIInterpType):
    """Images (height, width, 3) uint8 to (out_height, out_width, 3), antialiased, as Pillow does.

    A cubic kernel overshoots, and Pillow cuts to levels after each axis: so there are two passes in
    Pillow's order. A linear one does not, and one pass is closer: within a level for certain.

    Args:
        images: to resize.
        height: of the images, int32 scalar.
        width: likewise.
        out_height: number of rows afterwards, plain or int32 scalar.
        out_width: likewise.
        interpolation: `types.INTERP_LINEAR` or `types.INTERP_CUBIC`.
    """
    sizes = [fn.stack(height * 0 + out_height, width * 0 + out_width)]
    if interpolation == types.INTERP_CUBIC:
        order = rows_come_first(height, width, (out_height, out_width))
        rows_first = fn.cast(order, dtype=types.INT32)
        rows = rows_first * out_height + (1 - rows_first) * height
        columns = rows_first * width + (1 - rows_first) * out_width
        sizes.insert(0, fn.stack(rows, columns))
    for size in sizes:
        size = fn.cast(size, dtype=types.FLOAT)
        images = fn.resize(images, size=size, interp_type=interpolation, antialias=True)
    return images


@do_not_convert
def resized_crop(images, u, size: int, scale: tuple[float, float], fallback: str, **resize: Any):
    """RandomResizedCrop of images (H, W, 3) uint8 to (size, size, 3).

    Args:
        images: to cut from.
        u: (22,) uniform numbers, see `crop_box`.
        size: side of the result in pixels.
        scale: smallest and largest share of the area.
        fallback: see `crop_box`.
        resize: `interpolation`, see `resized`.
    """
    height, width = sides(images)
    place, shape = crop_box(height, width, u, scale, fallback)
    images = fn.slice(images, place, shape, axes=[0, 1])
    return resized(images, shape[0], shape[1], size, size, **resize)


@do_not_convert
def shorter_side_resized(images, size: int, interpolation: types.DALIInterpType):
    """Images with their shorter side brought to `size`, the longer one cut off to whole pixels."""
    height, width = sides(images)
    short = dm.min(height, width)
    out = (size * height // short, size * width // short)
    return resized(images, height, width, *out, interpolation)


@do_not_convert
def center_crop(images, size: int):
    """The central square of side `size`; half of an odd margin is rounded to even, as in Python."""
    spare = fn.stack(*sides(images)) - size
    half = spare // 2
    return fn.slice(images, half + (spare % 2) * (half % 2), [size, size], axes=[0, 1])
