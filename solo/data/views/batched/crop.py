# SPDX-License-Identifier: MIT
"""Crops and resizes as two matrices per image, and flips inside them.

A separable resize of a crop is `rows @ image @ columns^T`: each matrix holds, per output pixel,
the weights of the input pixels, zero outside of the crop. The weights are Pillow's: the cubic
kernel with a = -0.5, widened by the shrinking factor (antialiasing), normalised inside the crop,
the result rounded to whole levels after each of the two passes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from solo.data.views.batched.operation import (
    Operation,
    apply_to,
    between,
    change_chosen,
    levels,
    may_look,
    whole_below,
)
from solo.errors import ConfigError

RATIO = (3 / 4, 4 / 3)  # aspect ratios of torchvision's RandomResizedCrop
TRIES = 10  # how many boxes it draws before it takes the central crop
CUBIC = -0.5


def crop_boxes(
    u: Tensor, height: int, width: int, scale: tuple[float, float], fallback: str = "center"
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Boxes of `torchvision.transforms.RandomResizedCrop.get_params`, by its law.

    All ten tries are made at once and the first that fits counts; the position needs only one
    draw, because it is drawn after a try has fitted.

    Args:
        u: (N, 22) uniform numbers: ten areas, ten log ratios, two positions.
        height: of the images.
        width: of the images.
        scale: smallest and largest share of the area.
        fallback: where the box lies when no try has fitted: in the `center`, as torchvision has
            it, or at a `random` place along the longer side.

    Returns:
        top, left, height and width of each box, (N,) whole numbers as floats.
    """
    area = height * width * between(u[:, :TRIES], *scale)
    ratio = between(u[:, TRIES : 2 * TRIES], math.log(RATIO[0]), math.log(RATIO[1])).exp()
    w, h = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = (fits * torch.arange(TRIES, 0, -1, device=u.device)).argmax(1, keepdim=True)
    fitted = fits.any(1)
    central_h, central_w = _central_box(height, width)
    h = torch.where(fitted, h.gather(1, first)[:, 0], central_h)
    w = torch.where(fitted, w.gather(1, first)[:, 0], central_w)
    top, left = whole_below(u[:, -2], height - h + 1), whole_below(u[:, -1], width - w + 1)
    if fallback == "center":
        top = torch.where(fitted, top, (height - central_h) // 2)
        left = torch.where(fitted, left, (width - central_w) // 2)
    return top, left, h, w


def _central_box(height: int, width: int) -> tuple[int, int]:
    """Height and width of torchvision's way out when no try fitted."""
    if width / height < RATIO[0]:
        return round(width / RATIO[0]), width
    if width / height > RATIO[1]:
        return height, round(height * RATIO[1])
    return height, width


def resize_weights(
    start: Tensor, length: Tensor, full: int, size: int, flip: Tensor | None = None
) -> Tensor:
    """Weights of a bicubic, antialiased resize of one axis.

    Args:
        start: (N,) first input pixel of the crop.
        length: (N,) number of input pixels of the crop.
        full: number of pixels of the axis.
        size: number of output pixels.
        flip: (N,) bool, where the output runs backwards.

    Returns:
        (N, size, full); rows add up to 1.
    """
    out = _outputs(size, start, flip)
    length = length[:, None]
    shrink = length / size
    centre = (out + 0.5) * shrink
    tap = torch.arange(full, device=start.device) + 0.5 - start[:, None]
    inside = (tap + 0.5).clamp_(0, 1) * (length - tap + 0.5).clamp_(0, 1)
    distance = (tap[:, None, :] - centre[..., None]).abs_()
    if full > size:  # else no crop is shrunk
        distance.div_(shrink.clamp(min=1)[..., None])
    weight = _cubic(distance).mul_(inside[:, None, :])
    return weight.div_(weight.sum(-1, keepdim=True))


def _outputs(size: int, like: Tensor, flip: Tensor | None) -> Tensor:
    """Numbers of the output pixels, (1, size) or (N, size): backwards where `flip` (N,) is set."""
    out = torch.arange(size, device=like.device, dtype=torch.float32)[None]
    return out if flip is None else torch.where(flip[:, None], size - 1 - out, out)


def _cubic(t: Tensor) -> Tensor:
    """Keys' cubic kernel with a = -0.5 at distances t >= 0; each half is 0 at its ends."""
    near, far = t.clamp(max=1), t.clamp(1, 2)
    inner = ((CUBIC + 2) * near).sub_(CUBIC + 3).mul_(near).mul_(near).add_(1)
    return inner.add_((far - 5).mul_(far).add_(8).mul_(far).sub_(4), alpha=CUBIC)


def rows_come_first(h: Any, w: Any, out: tuple[int, int]) -> Any:
    """Whether Pillow 13 resizes the rows of a crop before its columns, to save work.

    Earlier versions always begin with the columns. The order only matters where the first pass
    overshoots a level of 0 or 255 and is cut off.

    Args:
        h: (N,) heights of the crops, or one as a plain number.
        w: (N,) widths of the crops, or one.
        out: height and width afterwards.
    """
    return (h > out[0]) & (h - out[0] > 2 * (w - out[1]))


def resample(images: Tensor, rows: Tensor, columns: Tensor, swap: Tensor | None = None) -> Tensor:
    """Apply weights of both axes, those of the columns first.

    Args:
        images: (N, 3, H, W) uint8.
        rows: (N or 1, h, H).
        columns: (N or 1, w, W).
        swap: (N or 1,) bool, where the rows come first.

    Returns:
        (N, 3, h, w) float whole levels.
    """
    if swap is None or (may_look(images) and not swap.any()):
        return _two_passes(images, rows, columns)
    if rows.shape != columns.shape:
        x = _two_passes(images, rows, columns)
        return apply_to(swap, _two_passes(images.mT, columns, rows).mT, x)
    # Squares: a transposed image with its weights exchanged has its rows treated first.
    weight = swap.to(rows.dtype)[:, None, None]
    first, second = torch.lerp(columns, rows, weight), torch.lerp(rows, columns, weight)
    x = images.float()
    x = _two_passes(apply_to(swap, x.mT, x), second, first)
    return apply_to(swap, x.mT, x)


def _two_passes(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    # float16 holds all levels and eleven bits of a weight: the tensor cores' format that stays
    # within Pillow's rounding (bfloat16 is three levels off). The CPU is fast in float32.
    dtype = torch.float16 if images.is_cuda else torch.float32
    n, channels, height, width = images.shape
    # Rows outermost, so that the channels of a row lie side by side for both products.
    x = images.transpose(1, 2).to(dtype, memory_format=torch.contiguous_format)
    x = x.reshape(n, height * channels, width) @ columns.to(dtype).mT
    x = levels(x.float()).to(dtype).reshape(n, height, -1)
    x = levels((rows.to(dtype) @ x).float())
    return x.reshape(n, x.shape[1], channels, -1).transpose(1, 2)


class ResizedCrop(Operation):
    """RandomResizedCrop: a box of random area and ratio, resized to a square.

    Args:
        size: side of the square in pixels.
        scale: smallest and largest share of the image's area.
        fallback: see `crop_boxes`.
    """

    draws = 2 * TRIES + 2

    def __init__(self, size: int, scale: tuple[float, float], fallback: str = "center"):
        super().__init__()
        self.size, self.scale, self.fallback = size, scale, fallback

    def forward(self, images: Tensor, u: Tensor, flip: Tensor | None = None) -> Tensor:
        """Images (N, 3, H, W) uint8 to (N, 3, size, size); `flip` (N,) mirrors."""
        height, width = images.shape[-2:]
        top, left, h, w = crop_boxes(u, height, width, self.scale, self.fallback)
        rows = resize_weights(top, h, height, self.size)
        columns = resize_weights(left, w, width, self.size, flip)
        if height <= self.size:  # no crop of this image loses rows
            return resample(images, rows, columns)
        return resample(images, rows, columns, rows_come_first(h, w, (self.size, self.size)))


class PaddedCrop(Operation):
    """RandomCrop: a window of fixed size out of the image with a black border.

    Args:
        size: side of the window in pixels.
        padding: width of the border in pixels.
    """

    draws = 2

    def __init__(self, size: int, padding: int):
        super().__init__()
        self.size, self.padding = size, padding

    def forward(self, images: Tensor, u: Tensor, flip: Tensor | None = None) -> Tensor:
        """Images (N, 3, H, W) uint8 to (N, 3, size, size); `flip` (N,) mirrors.

        Raises:
            ConfigError: the window is larger than the image with its border.
        """
        sides = images.shape[-2:]
        if self.size > min(sides) + 2 * self.padding:
            raise ConfigError(
                f"augmentations: crop_size={self.size} is larger than images of "
                f"{sides[1]}x{sides[0]} with padding={self.padding} on each side."
            )
        places = [
            whole_below(u[:, i], side + 2 * self.padding - self.size + 1)
            for i, side in enumerate(sides)
        ]
        rows = self._pick(places[0], sides[0])
        return resample(images, rows, self._pick(places[1], sides[1], flip))

    def _pick(self, start: Tensor, full: int, flip: Tensor | None = None) -> Tensor:
        """One input pixel per output pixel, none in the border: (N, size, full)."""
        wanted = _outputs(self.size, start, flip) + start[:, None] - self.padding
        return (wanted[..., None] == torch.arange(full, device=start.device)).float()


class Resize(Operation):
    """The centre of an image whose shorter side is brought to `size` pixels: a square."""

    draws = 0

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(self, images: Tensor, u: Tensor, flip: Tensor | None = None) -> Tensor:
        """Images (N, 3, H, W) uint8 to (N, 3, size, size); `flip` (N,) mirrors."""
        height, width = images.shape[-2:]
        short = min(height, width)
        out = (int(self.size * height / short), int(self.size * width / short))
        rows, columns = self._centre(u, height, out[0]), self._centre(u, width, out[1])
        if flip is not None:
            columns = torch.where(flip[:, None, None], columns.flip(1), columns)
        full = [u.new_full((1,), side) for side in (height, width)]
        return resample(images, rows, columns, rows_come_first(*full, out))

    def _centre(self, like: Tensor, full: int, out: int) -> Tensor:
        """Weights (1, size, full) of the central outputs of an axis resized to `out` pixels."""
        weights = resize_weights(like.new_zeros(1), like.new_full((1,), full), full, out)
        return weights.narrow(1, round((out - self.size) / 2), self.size)


class Flip(Operation):
    """Mirror images; where nothing follows the crop that minds the side, the crop does it."""

    def __init__(self, prob: float):
        super().__init__()
        self.prob = prob

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        """Images (N, 3, H, W), some of them mirrored."""
        return change_chosen(u[:, 0] < self.prob, mirrored, x)


def mirrored(x: Tensor) -> Tensor:
    """Images (N, 3, H, W), left and right exchanged."""
    return x.flip(-1)
