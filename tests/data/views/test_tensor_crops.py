# SPDX-License-Identifier: MIT
"""Crops of tensors against Pillow's, box for box and pixel for pixel."""

import pytest
import torch
from torchvision.transforms import functional as TF

from solo.data.pretrain_dataloader import crop_of
from solo.data.views.batched import BatchedView
from solo.data.views.batched.crop import crop_boxes, rows_come_first
from solo.data.views.tensor_crops import resized, tensor_crop_of
from tests.data.conftest import needs_pillow_13
from tests.data.views.batched.conftest import batch, pil

pytestmark = pytest.mark.unit
ENTRIES = {
    "large": {"crop_size": 24, "rrc": {"enabled": True, "crop_min_scale": 0.08}},
    "small": {"crop_size": 9, "rrc": {"enabled": True, "crop_max_scale": 0.3}},
    "whole": {"crop_size": 20, "rrc": {"enabled": False}},
    "narrow": {
        "crop_size": 24,
        "rrc": {"enabled": True, "crop_min_scale": 0.9, "fallback": "random"},
    },
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


@pytest.mark.parametrize(("height", "width"), [(20, 400), (400, 20)])
def test_the_way_out_of_a_narrow_image_is_one_place_or_a_random_one(height, width):
    """At 20:1 no try fits: torchvision's box is always the same, the random one wanders."""
    image = batch(1, height, width)[0]
    along = (torch.arange(max(height, width)) % 256).to(torch.uint8)
    image[0] = along if width > height else along[:, None]

    def places(fallback):
        rrc = {"enabled": True, "crop_min_scale": 0.08, "fallback": fallback}
        entry = {"crop_size": 20, "rrc": rrc}
        view = BatchedView("custom", entry)
        batched = view.crop(image.expand(200, -1, -1, -1), torch.rand(200, view.crop.draws))
        crops = {
            "pil": lambda: TF.pil_to_tensor(crop_of(entry)(pil(image))),
            "tensor": lambda: tensor_crop_of(entry)(image),
        }
        found = {
            name: {make()[0, 10, 10].item() for _ in range(50)} for name, make in crops.items()
        }
        return {**found, "batched": set(batched[:, 0, 10, 10].tolist())}

    torch.manual_seed(0)
    assert {name: len(seen) for name, seen in places("center").items()} == {
        "pil": 1, "tensor": 1, "batched": 1
    }  # fmt: skip
    assert all(len(seen) > 20 for seen in places("random").values())


def test_random_fallback_changes_nothing_where_a_try_fits():
    u = torch.rand(500, 22)
    for shape in ((60, 80), (64, 64)):
        center, random = (crop_boxes(u, *shape, (0.08, 0.5), law) for law in ("center", "random"))
        assert all(torch.equal(a, b) for a, b in zip(center, random, strict=True))


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
