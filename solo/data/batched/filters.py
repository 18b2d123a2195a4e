# SPDX-License-Identifier: MIT
"""Operations on neighbourhoods: Gaussian blur and rotation, as Pillow computes them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from solo.data.batched.operation import Operation, apply_to, between

SIGMA = (0.1, 2.0)  # standard deviations in pixels (SimCLR, appendix A)
PASSES = 3  # box blurs that make a Gaussian one
REACH = 2  # pixels that a box reaches to each side; enough for sigma up to 2.99


def box_radius(sigma: Tensor) -> Tensor:
    """Radius of the box whose three passes have the variance sigma^2.

    Gwosdek et al. 2011, "Theoretical foundations of Gaussian convolution by extended box
    filtering", equations 7, 11 and 14.
    """
    variance = sigma * sigma / PASSES
    whole = (((12 * variance + 1).sqrt() - 1) / 2).floor()
    rest = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    return whole + rest / (6 * (variance - (whole + 1) ** 2))


class GaussianBlur(Operation):
    """Blur with a standard deviation between 0.1 and 2 pixels.

    Pillow's blur: three box blurs along each axis, rounded after each, borders repeated.
    """

    draws = 2

    def __init__(self, prob: float):
        super().__init__()
        self.prob = prob

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        """Levels (N, 3, H, W) with uniform numbers u (N, 2) to levels."""
        radius = box_radius(between(u[:, 1], *SIGMA))
        inside = (2.0**24 / (2 * radius + 1)).floor() / 2.0**24
        edge = (1 - (2 * radius.floor() + 1) * inside) / 2
        wide = radius >= 1
        weights = inside, torch.where(wide, inside, edge), torch.where(wide, edge, 0.0)
        kept = u[:, 0] >= self.prob  # the box of one pixel changes nothing
        weights = [torch.where(kept, float(i == 0), weight) for i, weight in enumerate(weights)]
        columns = [weight[:, None, None, None] for weight in weights]
        for axis in (3, 2):
            for _ in range(PASSES):
                x = _box(x, columns, axis)
        return x


def _box(x: Tensor, weights: list[Tensor], axis: int) -> Tensor:
    """One box blur along `axis`; weights of distance 0, 1 and 2."""
    border = (REACH, REACH, 0, 0) if axis == 3 else (0, 0, REACH, REACH)
    wide, size = F.pad(x, border, mode="replicate"), x.shape[axis]
    total = x * weights[0]
    for distance in range(1, REACH + 1):
        sides = wide.narrow(axis, REACH - distance, size) + wide.narrow(
            axis, REACH + distance, size
        )
        total = total.addcmul_(sides, weights[distance])
    return total.add_(0.5).floor_()


class Rotation(Operation):
    """Turn about the centre by an angle from -degrees to degrees, bilinear, black outside.

    Args:
        prob: share of the images that are turned.
        degrees: largest angle.
    """

    draws = 2

    def __init__(self, prob: float, degrees: float):
        super().__init__()
        self.prob, self.degrees = prob, degrees

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        """Levels (N, 3, H, W) with uniform numbers u (N, 2) to levels."""
        angle = between(u[:, 1], -self.degrees, self.degrees) * (math.pi / 180)
        return apply_to(u[:, 0] < self.prob, rotated(x, angle), x)


def rotated(x: Tensor, angle: Tensor) -> Tensor:
    """Images (N, 3, H, W) turned counterclockwise by `angle` (N,) radians."""
    height, width = x.shape[-2:]
    along = torch.arange(width, device=x.device) + (0.5 - width / 2)
    down = (torch.arange(height, device=x.device) + (0.5 - height / 2))[:, None]
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    source_x = (cos * along - sin * down) * (2 / width)  # -1 and 1 are the borders
    source_y = (sin * along + cos * down) * (2 / height)
    grid = torch.stack([source_x, source_y], dim=-1)
    turned = F.grid_sample(x, grid, "bilinear", padding_mode="border", align_corners=False)
    inside = (source_x >= -1) & (source_x < 1) & (source_y >= -1) & (source_y < 1)
    # Pillow cuts to whole levels; its sum of equal levels is exact, grid_sample's a little less.
    return turned.add_(1e-3).floor_() * inside[:, None]
