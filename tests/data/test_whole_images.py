# SPDX-License-Identifier: MIT
"""Views without a random crop: one rule for images of any shape, the same in every format."""

from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image

from scripts.utils.convert_imgfolder_to_h5 import convert_imgfolder_to_h5
from scripts.utils.convert_imgfolder_to_shards import convert_imgfolder_to_shards
from solo.args.pretrain import parse_cfg
from solo.programs.pretrain import build_data
from tests.data.conftest import needs_pillow_13
from tests.data.pictures import textured
from tests.programs.tiny import PRETRAIN, config

SHAPES = [(32, 96), (97, 32), (32, 32), (60, 40)]
SIDE = 24
STATISTICS = {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}
VIEW = {"crop_size": SIDE, "num_crops": 2, "rrc": {"enabled": False}, **STATISTICS}


def whole(pixels):
    """(3, SIDE, SIDE) levels: the shorter side resized by Pillow, the centre cut out by hand."""
    height, width = pixels.shape[:2]
    h, w = (int(SIDE * side / min(height, width)) for side in (height, width))
    image = np.asarray(Image.fromarray(pixels).resize((w, h), Image.Resampling.BICUBIC))
    top, left = round((h - SIDE) / 2), round((w - SIDE) / 2)
    return image[top : top + SIDE, left : left + SIDE].transpose(2, 0, 1).astype(np.float32)


def images_in(folder, shapes, per_class=2):
    made = []
    for label in "ab":
        (folder / label).mkdir(parents=True)
        for i in range(per_class):
            pixels = textured(*shapes[len(made) % len(shapes)], seed=len(made))
            Image.fromarray(pixels).save(folder / label / f"{i}.png")
            made.append(pixels)
    return made


def views_of(path, kind, **data):
    """Views by index, as a run makes them."""
    data = {"dataset": "custom", "num_workers": 1, "train_path": str(path), "format": kind, **data}
    cfg = config(PRETRAIN, data=data, augmentations=[VIEW], dali={"device": "cpu"})
    cfg.optimizer.batch_size = 4
    made = build_data(parse_cfg(cfg))
    if not isinstance(made, tuple):
        device = torch.device("cpu")
        made.trainer = Namespace(
            local_rank=0, global_rank=0, world_size=1, current_epoch=0,
            strategy=Namespace(root_device=device),
        )  # fmt: skip
        made.setup()
    loader = made[0] if isinstance(made, tuple) else made.train_dataloader()
    batch = next(iter(loader))
    if data.get("augment") == "device":
        batch = made.on_after_batch_transfer(batch, 0)
    indexes, views, _ = batch
    assert [tuple(view.shape) for view in views] == [(4, 3, SIDE, SIDE)] * 2
    torch.testing.assert_close(views[0], views[1])
    return {int(index): 255 * view.numpy() for index, view in zip(indexes, views[0], strict=True)}


@needs_pillow_13
@pytest.mark.parametrize("kind", ["image_folder", "device", "h5", "webdataset", "dali"])
def test_images_of_several_shapes(tmp_path, kind):
    folder, data = tmp_path / "images", {}
    made = images_in(folder, SHAPES)
    path, expected = folder, [whole(pixels) for pixels in made]
    if kind == "dali":
        pytest.importorskip("nvidia.dali")
    if kind == "h5":
        path, data = tmp_path / "images.h5", {"dataset": "imagenet100"}
        convert_imgfolder_to_h5(folder, path)
    if kind == "webdataset":
        path = tmp_path / "shards"
        convert_imgfolder_to_shards(folder, path)
        expected = None  # in an order of their own
    if kind == "device":
        kind, data = "image_folder", {"augment": "device"}
    if data.get("dataset"):  # statistics of its own, which are taken out again
        mean, std = (np.float32(v)[:, None, None] for v in _imagenet())
        found = {i: v * std + 255 * mean for i, v in views_of(path, kind, **data).items()}
    else:
        found = views_of(path, kind, **data)
    assert sorted(found) == [0, 1, 2, 3]
    margin = 2 if kind == "dali" else 0  # DALI repeats the edge when it shrinks
    inside = slice(margin, SIDE - margin)
    whole_views = [whole(pixels) for pixels in made]
    for index, view in found.items():
        candidates = whole_views if expected is None else [expected[index]]
        off = [np.abs(view - wanted)[:, inside, inside].max() for wanted in candidates]
        assert min(off) <= 2.5


def _imagenet():
    return (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@needs_pillow_13
@pytest.mark.parametrize("shape", SHAPES)
def test_resident(tmp_path, shape):
    made = images_in(tmp_path / "images", [shape])
    found = views_of(tmp_path / "images", "resident")
    for index, view in found.items():
        assert np.abs(view - whole(made[index])).max() <= 1.5


def test_a_mirrored_centre_is_the_mirror_of_the_centre():
    """An odd margin is cut off on the same side whether or not the view is mirrored."""
    from solo.data.views.batched import build_views

    images = torch.from_numpy(textured(32, 45, 1)).permute(2, 0, 1)[None].repeat(40, 1, 1, 1)
    views = build_views("custom", [{**VIEW, "num_crops": 1, "horizontal_flip": {"prob": 0.5}}])
    found = views(images, torch.Generator().manual_seed(0))[0]
    first = found[0]
    same = [torch.equal(view, first) for view in found]
    mirrored = [torch.equal(view, first.flip(-1)) for view in found]
    assert all(one or other for one, other in zip(same, mirrored, strict=True))
    assert 5 < sum(same) < 35
