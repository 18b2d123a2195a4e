# SPDX-License-Identifier: MIT
"""Operations on neighbourhoods: Gaussian blur and rotation, as Pillow computes them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from solo.data.views.batched.operation import Operation, between, change_chosen, may_look

SIGMA = (0.1, 2.0)  # standard deviations in pixels (SimCLR, appendix A)
PASSES = 3  # box blurs that make a Gaussian one


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

    Pillow's blur: three box blurs along each axis, rounded after each, borders repeated. A
    box reaches two pixels to each side, which is enough for deviations up to 2.99.
    """

    draws = 2

    def __init__(self, prob: float):
        super().__init__()
        self.prob = prob

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        """Levels (N, 3, H, W) with uniform numbers u (N, 2) to levels."""
        radius = box_radius(between(u[:, 1], *SIGMA))
        return change_chosen(u[:, 0] < self.prob, blurred, x, radius)


def box_weights(radius: Tensor) -> list[Tensor]:
    """Weights of a box of `radius` (N,) below 2 at the distances 0, 1 and 2, (N,) each."""
    inside = (2.0**24 / (2 * radius + 1)).floor() / 2.0**24
    edge = (1 - (2 * radius.floor() + 1) * inside) / 2
    wide = radius >= 1
    return [inside, torch.where(wide, inside, edge), torch.where(wide, edge, 0.0)]


def blurred(x: Tensor, radius: Tensor) -> Tensor:
    """Images (N, 3, H, W) after three boxes of their `radius` (N,) along each axis."""
    weights = box_weights(radius)
    if may_look(x) and not (radius >= 1).any():
        weights.pop()
    columns = [weight[:, None, None, None] for weight in weights]
    for axis in (3, 2):
        for _ in range(PASSES):
            x = _box(x, columns, axis)
    return x


def _box(x: Tensor, weights: list[Tensor], axis: int) -> Tensor:
    """One box blur along `axis`; weights of distance 0, 1 and perhaps 2."""
    reach, size = len(weights) - 1, x.shape[axis]
    wide = F.pad(x, (reach, reach, 0, 0) if axis == 3 else (0, 0, reach, reach), mode="replicate")
    total = x * weights[0]
    for distance in range(1, reach + 1):
        left, right = (wide.narrow(axis, at, size) for at in (reach - distance, reach + distance))
        total = total.addcmul_(left + right, weights[distance])
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
        return change_chosen(u[:, 0] < self.prob, rotated, x, angle)


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
