# SPDX-License-Identifier: MIT
"""Crops of tensors against Pillow's, box for box and pixel for pixel."""

import pytest
import torch
from torchvision.transforms import functional as TF

from solo.data.pretrain_dataloader import crop_of
from solo.data.views.batched.crop import rows_come_first
from solo.data.views.tensor_crops import resized, tensor_crop_of
from tests.data.conftest import needs_pillow_13
from tests.data.views.batched.conftest import batch, pil

pytestmark = pytest.mark.unit
ENTRIES = {
    "large": {"crop_size": 24, "rrc": {"enabled": True, "crop_min_scale": 0.08}},
    "small": {"crop_size": 9, "rrc": {"enabled": True, "crop_max_scale": 0.3}},
    "whole": {"crop_size": 20, "rrc": {"enabled": False}},
    "padded": {"crop_size": 30, "padding": 4, "rrc": {"enabled": False}},
}


@needs_pillow_13
@pytest.mark.parametrize("name", ENTRIES)
@pytest.mark.parametrize(("height", "width"), [(40, 64), (64, 40), (33, 33)])
def test_same_draws_same_crop_within_two_levels(name, height, width):
    ours, pillows = tensor_crop_of(ENTRIES[name]), crop_of(ENTRIES[name])
    differ = []
    for seed, image in enumerate(batch(24, height, width)):
        torch.manual_seed(seed)
        mine = ours(image)
        state = torch.get_rng_state()
        torch.manual_seed(seed)
        wanted = TF.pil_to_tensor(pillows(pil(image)))
        assert torch.equal(torch.get_rng_state(), state)
        assert mine.shape == wanted.shape
        off = (mine.int() - wanted.int()).abs()
        assert off.max() <= 2
        differ.append((off > 0).float().mean().item())
    assert sum(differ) / len(differ) < 0.02
    if name == "padded":
        assert not any(differ)


@needs_pillow_13
@pytest.mark.parametrize(("size", "rows"), [((30, 30), False), ((10, 60), True), ((99, 40), False)])
def test_both_orders_of_the_axes_are_pillows(size, rows):
    """Noise overshoots the levels in the first pass, which shows what comes first."""
    draws = torch.Generator().manual_seed(0)
    image = torch.randint(0, 2, (3, 90, 61), dtype=torch.uint8, generator=draws) * 255
    wanted = TF.pil_to_tensor(TF.resize(pil(image), list(size), TF.InterpolationMode.BICUBIC))
    assert rows_come_first(90, 61, size) == rows
    off = (resized(image, size).int() - wanted.int()).abs()
    assert off.max() <= 2


def test_the_result_is_whole_and_apart_from_the_image():
    image = batch(1, 30, 30)[0]
    done = resized(image, (30, 30))
    assert done.is_contiguous()
    assert torch.equal(done, image)
    done.zero_()
    assert image.any()


def test_messages_show_the_crops():
    assert "size=24" in repr(tensor_crop_of(ENTRIES["large"]))
    assert "size=20" in repr(tensor_crop_of(ENTRIES["whole"]))
