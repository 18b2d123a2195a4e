# SPDX-License-Identifier: MIT
"""Colours: torchvision's laws, and the levels that Pillow gives for the same parameters."""

import pytest
import torch
from PIL import ImageOps
from scipy.stats import ks_2samp
from torchvision import transforms as T
from torchvision.transforms import functional as TF

from solo.data.views.batched.colour import (
    ORDERS,
    ColorJitter,
    Equalize,
    Grayscale,
    Solarize,
    equalized,
    luma,
    shift_hue,
)
from tests.data.views.batched.conftest import batch, numbers, pil, tensor

pytestmark = pytest.mark.unit
APPLY = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)


def every_colour():
    """(n, 3, 16, 16): a grid of all colours, some of them exactly between two hues."""
    steps = torch.cat([torch.arange(0, 256, 15), torch.tensor([1, 2, 127, 128, 254])])
    grid = torch.cartesian_prod(steps, steps, steps)
    grid = torch.cat([grid, grid[: -len(grid) % 256]])
    return grid.T.reshape(3, -1, 16, 16).transpose(0, 1).to(torch.uint8)


def test_grey_equals_pillow_for_every_colour():
    images = every_colour()
    for image, grey in zip(images, luma(images.float()), strict=True):
        assert torch.equal(grey.expand(3, -1, -1), tensor(TF.to_grayscale(pil(image), 3)))


@pytest.mark.parametrize("turn", [-0.5, -0.2, -0.003, 0.0, 0.01, 0.1, 0.37, 0.5])
def test_hue_equals_pillow_for_every_colour(turn):
    images = every_colour()
    steps = torch.full((len(images), 1, 1), float(int(turn * 255) % 256))
    wanted = torch.stack([tensor(TF.adjust_hue(pil(image), turn)) for image in images])
    off = (shift_hue(images.float(), steps) - wanted).abs()
    assert off.max() <= 1
    assert (off > 0).float().mean() < 1e-3


@pytest.mark.parametrize("order", range(24))
def test_jitter_equals_pillow_in_every_order(order):
    images = batch(6, seed=order)
    jitter = ColorJitter(1.0, 0.8, 0.8, 0.8, 0.2)
    u = numbers(6, 6, seed=order)
    u[:, 1] = (order + 0.5) / 24
    _, orders, factors, turns = jitter.drawn(u)
    assert orders.tolist() == [order] * 6
    for image, got, blends, turn in zip(
        images, jitter(images.float(), u), factors, turns, strict=True
    ):
        wanted, values = pil(image), [*blends.tolist(), float(turn)]
        for kind in ORDERS[order]:
            wanted = APPLY[kind](wanted, values[kind])
        off = (got - tensor(wanted)).abs()
        assert off.max() <= 3
        assert (off > 0).float().mean() < 0.002


def test_no_hue_means_no_trip_through_hsv():
    images = batch(6)
    u = numbers(6, 6, seed=3)
    jitter = ColorJitter(1.0, 0.4, 0.0, 0.4, 0.0)
    _, orders, factors, _ = jitter.drawn(u)
    for image, got, order, blends in zip(
        images, jitter(images.float(), u), orders, factors, strict=True
    ):
        wanted = pil(image)
        for kind in ORDERS[int(order)]:
            wanted = APPLY[kind](wanted, float(blends[kind])) if kind in (0, 2) else wanted
        assert torch.equal(got, tensor(wanted))


def test_images_that_are_not_chosen_stay():
    images, u = batch(6).float(), numbers(6, 6)
    u[:, 0] = torch.tensor([0.0, 0.79, 0.8, 0.81, 0.5, 0.99])
    ours = ColorJitter(0.8, 0.4, 0.4, 0.4, 0.1)(images, u)
    same = (ours == images).flatten(1).all(1)
    assert same.tolist()[1:] == [False, True, True, False, True]


def test_parameters_follow_torchvisions_law():
    theirs = T.ColorJitter(0.4, 1.5, 0.2, 0.1)
    ranges = theirs.brightness, theirs.contrast, theirs.saturation, theirs.hue
    drawn = [T.ColorJitter.get_params(*ranges) for _ in range(2000)]
    changed, orders, factors, turns = ColorJitter(0.8, 0.4, 1.5, 0.2, 0.1).drawn(numbers(2000, 6))
    columns = [*factors.T, turns]
    for i, ours in enumerate(columns):
        assert ks_2samp(ours.numpy(), [d[i + 1] for d in drawn]).pvalue > 1e-3
    counts = torch.bincount(orders, minlength=24)
    assert len(counts) == 24
    assert (counts - 2000 / 24).abs().max() < 45  # five standard deviations
    assert abs(float(changed.float().mean()) - 0.8) < 0.045


def test_grayscale_and_solarize():
    images, u = batch(4), torch.tensor([[0.1], [0.6], [0.1], [0.9]])
    grey, solar = Grayscale(0.2)(images.float(), u), Solarize(0.2)(images.float(), u)
    for i, image in enumerate(images):
        chosen = i in (0, 2)
        wanted = TF.to_grayscale(pil(image), 3) if chosen else pil(image)
        assert torch.equal(grey[i], tensor(wanted))
        wanted = ImageOps.solarize(pil(image)) if chosen else pil(image)
        assert torch.equal(solar[i], tensor(wanted))


@pytest.mark.parametrize("side", [12, 16, 17, 32, 96])
def test_equalize_equals_pillow(side):
    images = batch(8, side, side)
    images[1, 0] = images[1, 0] // 128 * 255  # two levels
    images[2, 1, : side // 2] = 0
    ours = equalized(images.float())
    for image, got in zip(images, ours, strict=True):
        assert torch.equal(got, tensor(ImageOps.equalize(pil(image))))
    some = Equalize(0.5)(images.float(), torch.tensor([[0.1], [0.9]]).repeat(4, 1))
    assert torch.equal(some[::2], ours[::2])
    assert torch.equal(some[1::2], images[1::2].float())
