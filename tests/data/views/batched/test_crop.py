# SPDX-License-Identifier: MIT
"""Crops: the law of torchvision's parameters, and Pillow's pixels for the same parameters."""

import pytest
import torch
from scipy.stats import ks_2samp
from torchvision import transforms as T
from torchvision.transforms import functional as TF

from solo.data.views.batched.crop import (
    Flip,
    PaddedCrop,
    Resize,
    ResizedCrop,
    crop_boxes,
    resize_weights,
)
from solo.errors import ConfigError
from tests.data.conftest import needs_pillow_13
from tests.data.views.batched.conftest import batch, numbers, pil, tensor

pytestmark = pytest.mark.unit
BICUBIC = T.InterpolationMode.BICUBIC
DRAWS = 3000


@pytest.mark.parametrize(
    ("height", "width", "scale"),
    [(32, 32, (0.08, 1.0)), (96, 64, (0.2, 1.0)), (20, 60, (0.6, 1.0)), (60, 20, (0.6, 1.0))],
)
def test_boxes_follow_torchvisions_law(height, width, scale):
    ours = torch.stack(crop_boxes(numbers(DRAWS, 22), height, width, scale), 1)
    image = torch.zeros(3, height, width)
    ratio = [3 / 4, 4 / 3]
    theirs = torch.tensor(
        [T.RandomResizedCrop.get_params(image, list(scale), ratio) for _ in range(DRAWS)],
        dtype=torch.float32,
    )
    assert (ours == ours.round()).all()
    for look in (
        *(lambda b, i=i: b[:, i] for i in range(4)),
        lambda b: b[:, 2] * b[:, 3],  # area
        lambda b: b[:, 3] / b[:, 2],  # ratio
        lambda b: b[:, 0] / (height - b[:, 2] + 1),  # place within the room that the size leaves
    ):
        assert ks_2samp(look(ours).numpy(), look(theirs).numpy()).pvalue > 1e-3


def test_boxes_lie_inside_and_the_largest_draws_are_allowed():
    for u in (torch.zeros(1, 22), torch.full((1, 22), 1 - 2**-24), numbers(500, 22)):
        top, left, h, w = crop_boxes(u, 33, 47, (0.08, 1.0))
        assert (top >= 0).all()
        assert (left >= 0).all()
        assert (top + h <= 33).all()
        assert (left + w <= 47).all()


def test_first_box_that_fits_counts():
    u = torch.full((1, 22), 0.5)
    u[0, :3] = torch.tensor([0.999, 0.25, 0.1])  # the first area does not fit with its ratio
    u[0, 10] = 0.999
    _, _, h, w = crop_boxes(u, 32, 32, (0.08, 1.0))
    assert float(h) == float(w) == round((32 * 32 * (0.08 + 0.92 * 0.25)) ** 0.5)


def test_no_box_fits_gives_the_central_crop():
    u = torch.full((2, 22), 0.999)
    top, left, h, w = crop_boxes(u, 20, 60, (0.9, 1.0))
    assert [int(v[0]) for v in (top, left, h, w)] == [0, 16, 20, 27]
    top, left, h, w = crop_boxes(u, 60, 20, (0.9, 1.0))
    assert [int(v[0]) for v in (top, left, h, w)] == [16, 0, 27, 20]
    assert [int(v[0]) for v in crop_boxes(u, 30, 30, (0.99, 1.0))] == [0, 0, 30, 30]


@needs_pillow_13
@pytest.mark.parametrize(("side", "size"), [(32, 32), (64, 32), (32, 48), (50, 24)])
@pytest.mark.parametrize("wider", [0, 5])
def test_resized_crop_equals_pillow(side, size, wider):
    images, u = batch(24, side, side + wider), numbers(24, 22, seed=1)
    flip = torch.arange(24) % 2 == 1
    ours = ResizedCrop(size, (0.08, 1.0))(images, u, flip)
    boxes = torch.stack(crop_boxes(u, side, side + wider, (0.08, 1.0)), 1).int().tolist()
    for image, box, mirrored, got in zip(images, boxes, flip, ours, strict=True):
        wanted = TF.resized_crop(pil(image), *box, [size, size], BICUBIC)
        wanted = tensor(TF.hflip(wanted) if mirrored else wanted)
        assert (got - wanted).abs().max() <= 2
        assert (got != wanted).float().mean() < 0.02  # rounding of halves, now and then
    assert (ours == ours.round()).all()


def test_weights_of_whole_axis_at_its_own_size_are_the_identity():
    zero, full = torch.zeros(1), torch.full((1,), 9)
    assert torch.allclose(resize_weights(zero, full, 9, 9)[0], torch.eye(9))
    assert torch.allclose(
        resize_weights(zero, full, 9, 9, torch.tensor([True]))[0], torch.eye(9).flip(0)
    )


def test_padded_crop_equals_pillow():
    images, u = batch(12, 20, 26), numbers(12, 2, seed=2)
    flip = torch.arange(12) % 3 == 0
    ours = PaddedCrop(20, 4)(images, u, flip)
    for image, (a, b), mirrored, got in zip(images, u, flip, ours, strict=True):
        top, left = int(a * (20 + 8 - 20 + 1)), int(b * (26 + 8 - 20 + 1))
        wanted = TF.crop(TF.pad(pil(image), 4), top, left, 20, 20)
        assert torch.equal(got, tensor(TF.hflip(wanted) if mirrored else wanted))


def test_padded_crop_is_uniform_over_all_places():
    places = PaddedCrop(4, 1)._pick((numbers(6000, 1)[:, 0] * 3).floor(), 4).sum(2)
    lost_top = (places[:, 0] == 0).float().mean()
    assert abs(float(lost_top) - 1 / 3) < 0.03


def test_padded_crop_larger_than_the_image_is_named():
    with pytest.raises(ConfigError, match=r"crop_size=32 is larger than images of 20x20"):
        PaddedCrop(32, 4)(batch(1, 20, 20), numbers(1, 2))


@needs_pillow_13
@pytest.mark.parametrize(("height", "width"), [(32, 32), (40, 30), (30, 41), (90, 30)])
def test_resize_equals_pillow(height, width):
    images = batch(6, height, width)
    ours = Resize(24)(images, numbers(6, 0))
    for image, got in zip(images, ours, strict=True):
        wanted = tensor(TF.center_crop(TF.resize(pil(image), 24, BICUBIC), 24))
        assert got.shape == wanted.shape
        assert (got - wanted).abs().max() <= 1


def test_flip():
    x, u = batch(4).float(), torch.tensor([[0.1], [0.4], [0.6], [0.9]])
    ours = Flip(0.5)(x, u)
    assert torch.equal(ours[:2], x[:2].flip(-1))
    assert torch.equal(ours[2:], x[2:])
