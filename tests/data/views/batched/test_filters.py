# SPDX-License-Identifier: MIT
"""Blur and rotation against Pillow."""

import math

import numpy as np
import pytest
import torch
from PIL import ImageFilter
from torchvision import transforms as T
from torchvision.transforms import functional as TF

from solo.data.views.batched.filters import GaussianBlur, Rotation, blurred, box_radius, rotated
from tests.data.views.batched.conftest import batch, numbers, pil, tensor

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("shape", [(32, 32), (18, 25), (3, 40)])
def test_blur_equals_pillow_at_every_width(shape):
    u = numbers(60, 2)
    u[:2, 1] = torch.tensor([0.0, 1 - 2**-24])
    images = batch(60, *shape)
    ours = GaussianBlur(1.1)(images.float(), u)
    off = torch.stack(
        [
            (got - tensor(pil(image).filter(ImageFilter.GaussianBlur(sigma)))).abs()
            for image, sigma, got in zip(images, (0.1 + 1.9 * u[:, 1]).tolist(), ours, strict=True)
        ]
    )
    assert off.max() <= 2
    assert (off > 0).float().mean() < 0.01
    assert (off > 1).float().mean() < 1e-4


def test_blur_where_many_sums_lie_between_two_levels():
    """A box of 1/6, 2/3, 1/6: Pillow rounds its halves by the last bit of an integer."""
    images = batch(6)
    ours = GaussianBlur(1.1)(images.float(), torch.tensor([[0.0, 0.9 / 1.9]]).expand(6, 2))
    for image, got in zip(images, ours, strict=True):
        off = (got - tensor(pil(image).filter(ImageFilter.GaussianBlur(1.0)))).abs()
        assert off.max() <= 3
        assert off.mean() < 1.5


def test_blur_follows_pillow_over_the_whole_range():
    """Noise, a checkerboard, stripes and single pixels, which small deviations change most."""
    rng, rows = np.random.default_rng(0), np.indices((40, 48))
    images = [
        rng.integers(0, 256, (3, 40, 48)),
        np.broadcast_to(rows.sum(0) % 2 * 255, (3, 40, 48)),
        np.broadcast_to(rows[1] % 3 // 2 * 255, (3, 40, 48)),
        (rng.random((3, 40, 48)) < 0.02) * 255,
    ]
    images = torch.from_numpy(np.stack(images).astype(np.uint8))
    for sigma in np.linspace(0.1, 2.0, 77):
        radius = box_radius(torch.full((4,), float(sigma)))
        for image, got in zip(images, blurred(images.float(), radius), strict=True):
            wanted = tensor(pil(image).filter(ImageFilter.GaussianBlur(float(sigma))))
            assert (got - wanted).abs().max() <= 3


@pytest.mark.parametrize("sigma", [0.15, 0.2, 0.3, 0.4])
def test_small_deviations_keep_their_variance(sigma):
    """Of one bright pixel; a Gaussian that is sampled at whole pixels would hardly spread it."""
    x = torch.zeros(1, 3, 9, 9)
    x[:, :, 4, 4] = 255
    across = blurred(x, box_radius(torch.tensor([sigma])))[0, 0].sum(0)
    spread = float((across * (torch.arange(9) - 4) ** 2).sum() / across.sum())
    sampled = torch.exp(-((torch.arange(9) - 4) ** 2) / (2 * sigma**2))
    too_little = float((sampled * (torch.arange(9) - 4) ** 2).sum() / sampled.sum())
    assert 0.7 * sigma**2 < spread < 1.2 * sigma**2  # levels are whole
    assert too_little < 0.6 * sigma**2


def test_only_chosen_images_are_blurred():
    images, u = batch(6).float(), numbers(6, 2)
    u[:, 0] = torch.tensor([0.0, 0.49, 0.5, 0.51, 0.2, 0.99])
    ours = GaussianBlur(0.5)(images, u)
    same = (ours == images).flatten(1).all(1)
    assert same.tolist()[1:] == [False, True, True, False, True]


def test_box_keeps_the_variance():
    """Three boxes of a radius r = l + a have the variance of the Gaussian (Gwosdek et al.)."""
    for sigma in (0.3, 1.0, 1.7, 2.0):
        radius = float(box_radius(torch.tensor(sigma)))
        whole, rest = math.floor(radius), radius - math.floor(radius)
        weight = 1 / (2 * radius + 1)
        variance = 2 * weight * (sum(i * i for i in range(whole + 1)) + rest * (whole + 1) ** 2)
        assert 3 * variance == pytest.approx(sigma**2, rel=1e-4)


@pytest.mark.parametrize("shape", [(32, 32), (20, 31)])
def test_rotation_equals_pillow(shape):
    images = batch(12, *shape)
    degrees = torch.linspace(-40, 40, 12)
    ours = rotated(images.float(), degrees * math.pi / 180)
    for image, angle, got in zip(images, degrees, ours, strict=True):
        wanted = tensor(TF.rotate(pil(image), float(angle), T.InterpolationMode.BILINEAR))
        off = (got - wanted).abs()
        assert off.max() <= 1
        assert (off > 0).float().mean() < 0.005


def test_angles_go_to_both_sides_and_some_images_stay():
    rotation = Rotation(0.5, 10.0)
    images = batch(4).float()
    u = torch.tensor([[0.1, 0.9], [0.6, 0.9], [0.1, 0.1], [0.9, 0.1]])
    ours = rotation(images, u)
    assert torch.equal(ours[[1, 3]], images[[1, 3]])
    assert torch.equal(ours[2], rotated(images[2:3], torch.tensor([-8 * math.pi / 180]))[0])
