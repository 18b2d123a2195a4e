# SPDX-License-Identifier: MIT
"""Colours and blur of DALI pipelines in Pillow's arithmetic, for given parameters.

Functions without a condition are not converted by DALI's autograph, which would take seconds.
DALI's own `color_twist` and `gaussian_blur` follow other laws: they turn the hue by a matrix in
YIQ, change contrast around a fixed grey, keep one order, and sample the blur's kernel. Images are
(H, W, 3) uint8 before and after each function.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from nvidia.dali import fn, types
from nvidia.dali import math as dm
from nvidia.dali.pipeline import do_not_convert

from solo.data.views.batched.colour import HUE, NOTHING, sequences
from solo.data.views.batched.filters import PASSES, SIGMA, box_radius, box_weights

CONTRAST, SATURATION = 1, 2  # kinds of blends
SIGMAS = 2048  # steps of the table of boxes


def _levels(x):
    """Floats cut to whole levels 0..255, as uint8."""
    return fn.cast(dm.floor(x), dtype=types.UINT8)  # the cast saturates


def luma(images):
    """Grey levels (H, W, 1) uint8, those of Pillow's `convert("L")` up to the last bit of a sum."""
    return fn.color_space_conversion(images, image_type=types.RGB, output_type=types.GRAY)


@do_not_convert
def grey(images):
    """Images without colour, in three equal channels."""
    level = luma(images)
    return fn.cat(level, level, level, axis=2)


@do_not_convert
def blended(images, kind, factor):
    """One change of ColorJitter: `factor` blends with black, the mean grey or the grey image.

    Args:
        images: to change.
        kind: int32 scalar; 0 is brightness, 1 contrast, 2 saturation.
        factor: float scalar.
    """
    level = luma(images)
    mean = dm.floor(fn.reductions.mean(level) + 0.5)
    base = level * (kind == SATURATION) + mean * (kind == CONTRAST)
    return _levels((images - base) * factor + base)


@do_not_convert
def hue_turned(images, turn):
    """Images with their hue turned, through Pillow's HSV of 8 bits.

    Args:
        images: to change.
        turn: float scalar between -0.5 and 0.5, in turns.
    """
    red, green, blue = (_float(images[:, :, c : c + 1]) for c in range(3))
    top = dm.max(dm.max(red, green), blue)
    span = top - dm.min(dm.min(red, green), blue)
    # 1 where the brightest channel is not red, and not red or green: levels are whole numbers.
    not_red, not_green = dm.min(top - red, 1.0), dm.min(top - green, 1.0)
    is_blue = not_red * not_green
    is_red, is_green = 1.0 - not_red, not_red - is_blue
    safe = dm.max(span, 1.0)
    red, green, blue = (top - red) / safe, (top - green) / safe, (top - blue) / safe
    more = is_red * blue + is_green * red + is_blue * green
    less = is_red * green + is_green * blue + is_blue * red
    start = 2.0 * (is_blue + not_red)  # sixths of a turn: 0 for red, 2, 4
    # Pillow adds in double precision; a hue that falls on a step decides by the last bit.
    hue = _float(_double(start) + _double(more) - _double(less)) / 6.0
    hue = _level_of(hue - dm.floor(hue)) + _steps(turn)
    hue = (hue - 256.0 * dm.floor(hue / 256.0)) * (6.0 / 255.0)
    drop = _level_of(span / dm.max(top, 1.0)) * top / 255.0  # saturation times value
    centre = types.Constant(np.float32([[[3, 2, 4]]]))
    sign = types.Constant(np.float32([[[-1, 1, 1]]]))
    offset = types.Constant(np.float32([[[2, -1, -1]]]))
    away = dm.min(dm.max(dm.abs(hue - centre) * sign + offset, 0.0), 1.0)
    return _levels(top + 0.5 - away * drop)


def _double(x):
    return fn.cast(x, dtype=types.FLOAT64)


def _float(x):
    return fn.cast(x, dtype=types.FLOAT)


def _level_of(share):
    """Whole part of 255 times a float32 number, exact."""
    return _float(dm.floor(_double(share) * 255.0))


def _steps(turn):
    """Whole steps of 1/256 turn, as torchvision cuts them: towards zero."""
    return dm.floor(dm.abs(turn) * 255.0) * (1.0 - 2.0 * (turn < 0))


@do_not_convert
def _kinds(order, hue: bool):
    """Kinds of blends at each place, and how many places there are."""
    table = sequences(hue).numpy().astype(np.int32)
    return types.Constant(table)[order], table.shape[1]


def jittered(images, order, factors, turn, hue: bool = True):
    """The changes of torchvision's ColorJitter.

    Args:
        images: to change.
        order: int32 scalar, which of the 24 orders of `solo.data.views.batched.colour.ORDERS`.
        factors: (3,) of brightness, contrast and saturation.
        turn: of the hue, float scalar.
        hue: whether it is turned at all.
    """
    kinds, places = _kinds(order, hue)
    for place in range(places):
        if hue and place == HUE:
            images = hue_turned(images, turn)
        kind = kinds[place]
        if kind != NOTHING:
            images = blended(images, kind, factors[kind])
    return images


@cache
def _boxes() -> np.ndarray:
    """Pillow's boxes (SIGMAS, 5) for standard deviations evenly over `SIGMA`."""
    sigma = torch.linspace(*SIGMA, SIGMAS, dtype=torch.float64)
    inside, near, far = box_weights(box_radius(sigma))
    return torch.stack([far, near, inside, near, far], 1).float().numpy()


@do_not_convert
def blurred(images, sigma):
    """Images after Pillow's Gaussian blur: three boxes along each axis, rounded after each.

    Args:
        images: to change.
        sigma: standard deviation in pixels, float scalar between 0.1 and 2.
    """
    place = (sigma - SIGMA[0]) * ((SIGMAS - 1) / (SIGMA[1] - SIGMA[0]))
    place = fn.cast(dm.clamp(place, 0.0, SIGMAS - 1.0), dtype=types.INT32)  # the nearest
    box = types.Constant(_boxes())[place]
    for shape in ([1, 5], [5, 1]):
        kernel = fn.reshape(box, shape=shape)
        for _ in range(PASSES):
            images = fn.filter(images, kernel, border="clamp")
    return images
