# SPDX-License-Identifier: MIT
"""Crops in workers and colours in batches against the per-sample pipeline."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import default_collate
from torchvision.transforms import functional as TF

from solo.data.catalogue import info_of
from solo.data.pretrain_dataloader import build_transform_pipeline, prepare_datasets
from solo.data.views.batched import BatchedView
from solo.data.views.device_views import Crop, DeviceData, DeviceViews
from solo.errors import ConfigError
from tests.programs.tiny import PRETRAIN, config

pytestmark = pytest.mark.unit

RRC = {"enabled": True, "crop_min_scale": 0.2, "crop_max_scale": 1.0}
JITTER = {"prob": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}
FULL = {
    "crop_size": 16,
    "num_crops": 2,
    "rrc": RRC,
    "color_jitter": JITTER,
    "grayscale": {"prob": 0.2},
    "gaussian_blur": {"prob": 0.5},
    "solarization": {"prob": 0.2},
    "horizontal_flip": {"prob": 0.5},
}
SMALL = {"crop_size": 8, "num_crops": 1, "rrc": RRC}


def pictures(n):
    """Photographs have colours of all kinds and sizes of all kinds."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(20, 40, size=(n, 2))
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in sizes]


def batch_of(views, images):
    return default_collate([views.transform()(image) for image in images])


def test_shapes_and_types_for_several_entries():
    views = DeviceViews("custom", [FULL, SMALL])
    crops = batch_of(views, pictures(5))
    assert [c.image.dtype for c in crops] == [torch.uint8] * 3
    assert [tuple(c.image.shape[1:]) for c in crops] == [(3, 16, 16), (3, 16, 16), (3, 8, 8)]
    done = views(crops)
    assert [v.dtype for v in done] == [torch.float32] * 3
    assert [v.shape for v in done] == [c.image.shape for c in crops]


def test_without_colours_a_view_is_the_ordinary_pipelines():
    """Same random state, same crop; two levels of 255 come from its rounding."""
    image = pictures(1)[0]
    views = DeviceViews("custom", [SMALL])
    torch.manual_seed(3)
    (mine,) = views(batch_of(views, [image]))
    torch.manual_seed(3)
    theirs = build_transform_pipeline("custom", SMALL)(image)
    torch.testing.assert_close(mine[0], theirs, rtol=0, atol=2.1 / 255 / 0.224)
    assert (mine[0] - theirs).abs().mean() < 0.05 / 255 / 0.224


def test_colours_are_those_of_the_batched_pipeline_for_the_same_numbers():
    """The crop of a whole square image onto itself changes nothing, so that both must agree."""
    entry = {**FULL, "rrc": {"enabled": True, "crop_min_scale": 1.0, "crop_max_scale": 1.0}}
    images = torch.randint(0, 256, (32, 3, 16, 16), dtype=torch.uint8)
    views, whole = DeviceViews("custom", [entry]), BatchedView("custom", entry)
    (view,) = views.pipelines
    u = torch.rand(32, whole.draws)
    u[:, 1 + 10 : 1 + 20] = 0.5  # ratio 1, so that every box is the image
    kept = [0, *range(1 + whole.crop.draws, whole.draws)]
    assert len(kept) == view.draws
    (mine,) = DeviceViews.forward(_only(views), [Crop(images, u[:, kept])])
    torch.testing.assert_close(mine, whole(images, u), rtol=0, atol=1e-5)


def _only(views):
    views.num_crops = [1]
    return views


def test_flips_and_grey_views_are_as_frequent_as_asked():
    entry = {"crop_size": 8, "rrc": {"enabled": False}, "num_crops": 1}
    entry |= {"grayscale": {"prob": 0.3}, "horizontal_flip": {"prob": 0.5}}
    picture = np.zeros((8, 8, 3), dtype=np.uint8)
    picture[:, :4, 0] = 255  # red on the left
    views = DeviceViews("custom", [entry])
    (done,) = views(batch_of(views, [Image.fromarray(picture)] * 1000))
    level = done * 0.225 + 0.45  # about what it was before the normalisation
    mirrored = level[:, :, 0, -1].amax(1) > level[:, :, 0, 0].amax(1)
    grey = level[:, 0, 0].amax(1) < 0.6
    assert mirrored.float().mean().item() == pytest.approx(0.5, abs=0.06)
    assert grey.float().mean().item() == pytest.approx(0.3, abs=0.06)


def test_numbers_follow_from_the_images_seed_not_from_the_batch():
    views = DeviceViews("custom", [FULL])
    images = pictures(4)

    def crops(image, seed):
        torch.manual_seed(seed)
        random.seed(seed)
        return views.transform()(image)

    alone = [views(default_collate([crops(image, i)])) for i, image in enumerate(images)]
    together = views(default_collate([crops(image, i) for i, image in enumerate(images)]))
    for k in range(2):
        torch.testing.assert_close(together[k], torch.cat([done[k] for done in alone]))


def test_only_training_batches_are_finished():
    views = DeviceViews("custom", [SMALL])
    data = DeviceData(None, views)
    val = [torch.zeros(2, 3, 8, 8), torch.zeros(2)]
    assert data.on_after_batch_transfer(val, 0) is val
    indexes, targets = torch.arange(2), torch.zeros(2)
    done = data.on_after_batch_transfer([indexes, batch_of(views, pictures(2)), targets], 0)
    assert done[1][0].dtype == torch.float32
    assert done[0] is indexes


def test_the_program_trains_with_it(tmp_path, monkeypatch):
    from solo.programs.pretrain import pretrain

    monkeypatch.chdir(tmp_path)
    root = tmp_path / "images"
    for label in "ab":
        (root / label).mkdir(parents=True)
    for i, image in enumerate(pictures(20)):
        image.save(root / "ab"[i % 2] / f"{i}.png")
    cfg = config(
        PRETRAIN,
        data={"dataset": "custom", "train_path": str(root), "num_workers": 1, "augment": "device"},
        augmentations=[FULL],
        optimizer__batch_size=4,
        performance={"profile": True},
    )
    trainer = pretrain(cfg)
    assert trainer.global_step == 2
    assert trainer.callback_metrics["train_nce_loss"].isfinite()


def test_dali_refuses_it():
    from solo.args.common import check_format

    cfg = config(PRETRAIN, data__format="dali", data__dataset="imagenet", data__augment="device")
    with pytest.raises(ConfigError, match=r"data\.augment=device"):
        check_format(cfg, info_of("imagenet"))


def test_files_reach_the_workers_as_bytes_with_pillows_pixels(folder, tmp_path):
    from scripts.utils.convert_imgfolder_to_h5 import convert_imgfolder_to_h5
    from scripts.utils.convert_imgfolder_to_shards import convert_imgfolder_to_shards

    convert_imgfolder_to_h5(folder, tmp_path / "a.h5")
    convert_imgfolder_to_shards(folder, tmp_path / "shards")
    places = [
        ({"data_format": "image_folder"}, folder),
        ({"data_format": "image_folder", "no_labels": True}, folder / "ant"),
        ({"data_format": "h5"}, tmp_path / "a.h5"),
        ({"data_format": "webdataset"}, tmp_path / "shards"),
    ]
    for kind, path in places:
        plain = prepare_datasets("custom", None, path, **kind)
        quick = prepare_datasets("custom", None, path, pixels=True, **kind)
        assert len(plain) == len(quick) > 0
        for one, other in zip(plain, quick, strict=True):
            assert (one[0], one[2]) == (other[0], other[2])
            assert torch.equal(TF.pil_to_tensor(one[1]), other[1])
