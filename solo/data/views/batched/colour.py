# SPDX-License-Identifier: MIT
"""Operations on single pixels and on histograms, in Pillow's arithmetic.

Everything is computed on whole levels and cut to whole levels where Pillow does it, so that the
results are equal, not only close (float32 holds all intermediate whole numbers exactly).
"""

from __future__ import annotations

from itertools import permutations

import torch
from torch import Tensor

from solo.data.views.batched.operation import (
    TOP,
    Operation,
    between,
    change_chosen,
    may_look,
    whole_below,
)

ORDERS = tuple(permutations(range(4)))  # of brightness, contrast, saturation, hue
LUMA = tuple(weight / 2**16 for weight in (19595, 38470, 7471))  # Pillow's
HUE, NOTHING = 3, 3  # in an order; in a sequence of blends, where 3 blends with the image itself


def luma(x: Tensor) -> Tensor:
    """Grey level of RGB (N, 3, H, W) as Pillow's `convert("L")`: (N, 1, H, W)."""
    red, green, blue = x.split(1, dim=1)
    # All sums are exact: whole numbers below 2^24 over 2^16.
    total = red.mul(LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])
    return total.add_(0.5).floor_()


def blend(x: Tensor, base: Tensor, factor: Tensor) -> Tensor:
    """`base + factor * (x - base)`, cut to levels as Pillow's `Image.blend` does."""
    return (x - base).mul_(factor).add_(base).floor_().clamp_(0, TOP)


def shift_hue(x: Tensor, steps: Tensor) -> Tensor:
    """Turn the hue by whole steps of 1/256 turn, through Pillow's HSV of 8 bits.

    Args:
        x: (N, 3, H, W) levels.
        steps: (N, 1, 1) whole numbers 0..255.

    Returns:
        (N, 3, H, W) levels.
    """
    red, green, blue = x.unbind(1)
    top = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    span = top - low
    # 1 where the brightest channel is not red, and not red or green: levels are whole numbers.
    not_red, not_green = (top - red).clamp_(max=1.0), (top - green).clamp_(max=1.0)
    is_blue = not_red * not_green
    is_red, is_green = 1.0 - not_red, not_red - is_blue
    # The hue turns from the brightest channel to the next one: one way (1) or the other (-1).
    way = (green - blue).mul_(is_red).addcmul_(is_green, blue - red).addcmul_(is_blue, red - green)
    way = way.clamp_(-1.0, 0.0).mul_(2.0).add_(1.0)
    # Pillow has hue = start + (top - a) / span - (top - b) / span in double precision, where one
    # of the two fractions is 1. The whole numbers first: then one rounding is all that there is.
    middle = (red + green).add_(blue).sub_(low).sub_(top)
    rest = (top - middle).div_(span.clamp(min=1.0)).mul_(way)
    start = (is_blue + not_red).mul_(2.0)  # sixths of a turn: 0 for red, 2, 4
    turn = start.add_(way).sub_(rest).div_(6.0)
    hue = _level(turn.sub_(turn.floor())).add_(steps)
    hue = hue.sub_((hue * 2.0**-8).floor_(), alpha=256.0).mul_(6.0 / TOP)
    drop = _level(span / top.clamp(min=1.0)).mul_(top).div_(TOP)  # saturation times value
    away = torch.stack(
        [2.0 - (hue - 3.0).abs_(), (hue - 2.0).abs_() - 1.0, (hue - 4.0).abs_() - 1.0], dim=1
    ).clamp_(0.0, 1.0)
    return ((top + 0.5)[:, None] - away.mul_(drop[:, None])).floor_()


def _level(share: Tensor) -> Tensor:
    """Whole part of 255 * share, also where float32 would round the product up to a level."""
    level = share.mul(TOP).floor_()
    rest = (share * 256.0).sub_(level).sub_(share)  # exact, as its terms are close
    return level.add_(rest.floor_())


class ColorJitter(Operation):
    """torchvision's ColorJitter with a probability: four changes in random order.

    Brightness, contrast and saturation are blends with black, with the mean grey and with the
    grey image, so one formula serves all three; the order of an image is looked up among all 24.
    Where all images must be treated alike (compiled, or on a GPU) there are three blends before
    the hue and three after it, some of them with the image itself.

    Args:
        prob: share of the images that are changed.
        brightness: factors are drawn from [max(0, 1 - brightness), 1 + brightness].
        contrast: the same.
        saturation: the same.
        hue: turns are drawn from [-hue, hue]; 0 leaves the hue alone.
    """

    draws = 6
    sequences: Tensor  # kinds of blends of each order
    places: Tensor  # of the hue in each order

    def __init__(
        self, prob: float, brightness: float, contrast: float, saturation: float, hue: float
    ):
        super().__init__()
        self.prob, self.strengths, self.hue = prob, (brightness, contrast, saturation), hue
        self.register_buffer("sequences", sequences(bool(hue)), persistent=False)
        places = torch.tensor([order.index(HUE) for order in ORDERS])
        self.register_buffer("places", places, persistent=False)

    def drawn(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Which images change, their orders (N,) in `ORDERS`, factors (N, 3), turns (N,)."""
        factors = [
            between(u[:, 2 + i], max(0.0, 1.0 - strength), 1.0 + strength)
            for i, strength in enumerate(self.strengths)
        ]
        order = whole_below(u[:, 1], len(ORDERS)).long()
        turns = between(u[:, 5], -self.hue, self.hue)
        return u[:, 0] < self.prob, order, torch.stack(factors, 1), turns

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        """Levels (N, 3, H, W) with uniform numbers u (N, 6) to levels."""
        changed, order, factors, turns = self.drawn(u)
        steps = torch.trunc(turns * TOP)
        steps = torch.where(steps < 0, steps + 256.0, steps)
        if may_look(x):
            return self._sorted(x, changed, order, factors, steps)
        return change_chosen(changed, self._jittered, x, order, factors, steps)

    def _jittered(self, x: Tensor, order: Tensor, factors: Tensor, steps: Tensor) -> Tensor:
        """All changes, the blend at each place for all images."""
        kinds, factors = self._blends(order, factors)
        for place in range(kinds.shape[1]):
            if self.hue and place == HUE:
                x = shift_hue(x, steps[:, None, None])
            x = _blended(x, kinds[:, place], factors[:, place])
        return x

    def _blends(self, order: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
        """Kinds of blends and their factors, (N, places) each."""
        kinds = self.sequences[order]
        ones = torch.ones_like(factors[:, :1])
        return kinds, torch.cat([factors, ones], dim=1).gather(1, kinds)

    def _sorted(
        self, x: Tensor, changed: Tensor, order: Tensor, factors: Tensor, steps: Tensor
    ) -> Tensor:
        """The same without blends of images with themselves: the others lie side by side when the
        images are sorted by the place of their hue, those that do not change last."""
        places, rows = torch.where(changed, self.places[order], -1).sort(descending=True)
        counts = [int(n) for n in (places[:, None] >= torch.arange(4)).sum(0)]
        n = counts[0]
        if n == 0:
            return x
        result = x.index_select(0, rows)
        x, rows_of = result[:n], rows[:n]
        kinds, factors = self._blends(order[rows_of], factors[rows_of])
        before = [slice(count) for count in reversed(counts[1:])]
        after = [slice(count, n) for count in reversed(counts[1:])]
        spans = [*before, *after] if self.hue else [slice(n)] * 3
        for place, span in enumerate(spans):
            if self.hue and place == HUE:
                x.copy_(shift_hue(x, steps[rows_of][:, None, None]))
            if span.stop is None or span.stop > (span.start or 0):
                _blend_in_place(x[span], kinds[span, place], factors[span, place])
        return result.index_select(0, rows.argsort())


def sequences(hue: bool) -> Tensor:
    """Kinds of blends of each of `ORDERS`: three places, or three before the hue and three after.

    Returns:
        (24, 3) or (24, 6): brightness (0), contrast (1), saturation (2) or none (3).
    """
    rows = []
    for order in ORDERS:
        at = order.index(HUE)
        before, after = list(order[:at]), list(order[at + 1 :])
        if not hue:
            rows.append(before + after)
            continue
        rows.append([NOTHING] * (3 - len(before)) + before + after + [NOTHING] * (3 - len(after)))
    return torch.tensor(rows)


def _blended(x: Tensor, kind: Tensor, factor: Tensor) -> Tensor:
    """Blends of (N,) kinds: with black (0), the mean grey (1), the grey image (2), itself (3)."""
    return blend(x, _base(x, kind), factor[:, None, None, None])


def _base(x: Tensor, kind: Tensor) -> Tensor:
    grey = luma(x)
    mean, kind = _mean(grey), kind[:, None, None, None]
    return grey.mul_(kind == 2).add_(mean.mul_(kind == 1))


def _blend_in_place(x: Tensor, kind: Tensor, factor: Tensor) -> None:
    base = _base(x, kind)
    x.sub_(base).mul_(factor[:, None, None, None]).add_(base).floor_().clamp_(0, TOP)


def _mean(grey: Tensor) -> Tensor:
    return grey.mean((1, 2, 3), keepdim=True).add_(0.5).floor_()


class Grayscale(Operation):
    """Replace some images of a batch by their grey values."""

    def __init__(self, prob: float):
        super().__init__()
        self.prob = prob

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        """Levels (N, 3, H, W) to levels."""
        return change_chosen(u[:, 0] < self.prob, lambda x: luma(x).expand_as(x), x)


class Solarize(Operation):
    """Invert all levels from 128 up (BYOL, appendix B)."""

    def __init__(self, prob: float):
        super().__init__()
        self.prob = prob

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        """Levels (N, 3, H, W) to levels."""
        return change_chosen(u[:, 0] < self.prob, solarized, x)


def solarized(x: Tensor) -> Tensor:
    """Levels (N, 3, H, W), those from 128 up inverted."""
    bright = (x - 127.0).clamp_(0.0, 1.0)  # levels are whole numbers
    return (TOP - 2.0 * x).mul_(bright).add_(x)


class Equalize(Operation):
    """Equalise the histogram of each channel as Pillow's `ImageOps.equalize`."""

    def __init__(self, prob: float):
        super().__init__()
        self.prob = prob

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        """Levels (N, 3, H, W) to levels."""
        return change_chosen(u[:, 0] < self.prob, equalized, x)


def equalized(x: Tensor) -> Tensor:
    """Every image of x (N, 3, H, W) with the histograms of its channels equalised."""
    pixels = x.long().flatten(2)
    counts = pixels.new_zeros(*pixels.shape[:2], 256)
    counts.scatter_add_(2, pixels, torch.ones_like(pixels))
    # Pillow's step: all pixels but those of the highest level, spread over 255 levels.
    last = counts.gather(2, pixels.amax(2, keepdim=True))
    step = (pixels.shape[2] - last) // 255
    before = counts.cumsum(2) - counts
    table = (before + step // 2) // step.clamp(min=1)
    table = torch.where(step > 0, table.clamp(max=255), torch.arange(256, device=x.device))
    return table.gather(2, pixels).reshape(x.shape).to(x.dtype)
