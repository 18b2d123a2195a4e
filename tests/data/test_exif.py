# SPDX-License-Identifier: MIT
"""`data.exif`: turned or not, the same in every format, in pretraining and in evaluation."""

import io
import json
from argparse import Namespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image, ImageOps
from torchvision.transforms.functional import center_crop, pil_to_tensor, resize

from scripts.utils.convert_imgfolder_to_h5 import convert_imgfolder_to_h5
from scripts.utils.convert_imgfolder_to_shards import convert_imgfolder_to_shards
from solo.args import schema
from solo.args.check import check
from solo.data import classification_dataloader as classification
from solo.data.datasets.images import decode_image, decode_pixels
from solo.data.pretrain_dataloader import CustomDatasetWithoutLabels, prepare_datasets
from solo.data.resident.loader import prepare_resident
from solo.data.views.batched import build_views
from solo.errors import ConfigError
from solo.programs import linear
from solo.programs.evaluation import evaluation_loaders
from tests.data.pictures import encoded, textured

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
pytestmark = pytest.mark.unit
MODES = ("ignore", "apply")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [None, 0, *range(1, 10)])
def test_both_readers_turn_as_pillow_does(kind, orientation):
    data = encoded(textured(20, 30), orientation, kind)
    stored = decode_image(data, "a")
    upright = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert np.array_equal(decode_image(data, "a", "apply"), upright)
    assert np.array_equal(decode_pixels(data, "a", "apply").permute(1, 2, 0), upright)
    assert np.array_equal(decode_pixels(data, "a").permute(1, 2, 0), stored)
    assert stored.size == (30, 20)


def test_a_damaged_note_is_no_damaged_image():
    data = encoded(textured(20, 30), 6)
    at = data.index(b"Exif\x00\x00") + 6
    broken = data[:at] + b"\xff" * 12 + data[at + 12 :]
    assert decode_image(broken, "a", "apply").size == (30, 20)


@pytest.fixture
def turned(tmp_path):
    """Class folders of JPEGs that lie on their side, all of one size, and the upright pictures."""
    for i in range(4):
        path = tmp_path / "train" / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(textured(40, 60, seed=i), orientation=(6, 8)[i // 2]))
    return tmp_path / "train"


def wanted(folder, exif):
    """(3, H, W) by name of the class and stored order."""
    images = [Image.open(path) for path in sorted(folder.glob("*/*.jpg"))]
    images = [ImageOps.exif_transpose(i) if exif == "apply" else i for i in images]
    return [pil_to_tensor(image.convert("RGB")) for image in images]


def same(images, others):
    return all(torch.equal(a, b) for a, b in zip(images, others, strict=True))


@pytest.mark.parametrize("exif", MODES)
def test_every_format_shows_the_same(turned, tmp_path, exif):
    convert_imgfolder_to_h5(turned, tmp_path / "train.h5")
    convert_imgfolder_to_shards(turned, tmp_path / "shards")
    expected = wanted(turned, exif)
    paths = {"image_folder": turned, "h5": tmp_path / "train.h5", "webdataset": tmp_path / "shards"}
    for data_format, path in paths.items():
        options = {"data_format": data_format, "exif": exif}
        for pixels in (False, True):
            made = prepare_datasets(
                "imagenet", None if pixels else pil_to_tensor, path, pixels=pixels, **options
            )
            found = [made[i][1] for i in range(4)]
            sets = classification.prepare_datasets(
                "imagenet", pil_to_tensor, pil_to_tensor, path, path, **options
            )
            if data_format == "webdataset":  # shards are shuffled: any order, but the same one
                assert all(any(torch.equal(a, b) for b in expected) for a in found)
                assert same(found, [sets[1][i][0] for i in range(4)])
                continue
            assert same(found, expected)
            assert all(same([part[i][0] for i in range(4)], expected) for part in sets)
    views = build_views("imagenet", [{"crop_size": 32, "num_crops": 1}])
    resident = prepare_resident("imagenet", views, turned, exif=exif)
    assert same(resident.images, expected)
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in turned.glob("*/*.jpg"):
        (flat / f"{path.parent.name}{path.name}").write_bytes(path.read_bytes())
    made = prepare_datasets("custom", pil_to_tensor, flat, no_labels=True, exif=exif)
    assert isinstance(made, CustomDatasetWithoutLabels)
    assert same([made[i][1] for i in range(4)], expected)


@pytest.mark.dali
@pytest.mark.parametrize("exif", MODES)
def test_dali_shows_the_same(turned, exif):
    pytest.importorskip("nvidia.dali")
    from solo.data.dali_dataloader import ClassificationDALIDataModule, PretrainDALIDataModule
    from tests.data.dali.loaders import module_of, plain_view

    crop = {"batch_size": 4, "exif": exif}
    module = module_of(ClassificationDALIDataModule, turned, turned, **crop)
    ((ours, _),) = module.val_dataloader()
    ((theirs, _),) = classification.prepare_data(
        "custom", turned, turned, batch_size=4, num_workers=0, exif=exif
    )[1]
    assert (ours - theirs).abs().max() < 0.02
    module = module_of(PretrainDALIDataModule, turned, plain_view(), 1, 0, **crop)
    indexes, (view,), _ = next(iter(module.train_dataloader()))
    views = build_views("custom", [{"crop_size": 32, "num_crops": 1}])
    for index, got in zip(indexes.tolist(), view, strict=True):
        image = wanted(turned, exif)[index].numpy().transpose(1, 2, 0)
        square = center_crop(resize(Image.fromarray(image), 32, Image.Resampling.BICUBIC), 32)
        plain = views(pil_to_tensor(square)[None], torch.Generator())[0][0]
        assert (got - plain).abs()[:, 2:-2, 2:-2].max() < 0.06


def run_folder(tmp_path, exif):
    (tmp_path / "run").mkdir()
    data = {"dataset": "custom"} if exif is None else {"dataset": "custom", "exif": exif}
    (tmp_path / "run" / "args.json").write_text(json.dumps({"data": data}))
    (tmp_path / "run" / "a-0-ep=1.ckpt").write_bytes(b"")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("trained", "asked", "expected"),
    [(None, None, "ignore"), ("apply", None, "apply"), ("apply", "ignore", "ignore")],
)
def test_evaluation_sees_what_training_saw(turned, tmp_path, trained, asked, expected):
    run = run_folder(tmp_path, trained)
    args = Namespace(
        dataset="custom", train_data_path=turned, val_data_path=turned, data_format="image_folder",
        data_fraction=-1, no_labels=False, mean=[0.0] * 3, std=[1.0] * 3, batch_size=4,
        num_workers=0, pretrained_checkpoint_dir=run, data_exif=asked,
    )  # fmt: skip
    cfg = OmegaConf.create(
        {
            "data": {"dataset": "custom", "train_path": str(turned), "val_path": str(turned),
                     "format": "image_folder", "num_workers": 0, "fraction": -1, "exif": asked,
                     "fraction_of": "images", "skip_unreadable": False, "augment": "workers",
                     "augmentations": {"crop_size": 224, "crop_min_scale": 0.08, "mean": MEAN,
                                       "std": STD}},
            "optimizer": {"batch_size": 4}, "auto_augment": False,
            "pretrained_feature_extractor": str(run),
        }
    )  # fmt: skip
    reference = classification.prepare_data(
        "custom", turned, turned, batch_size=4, num_workers=0, exif=expected
    )[1]
    ((images, _),) = reference
    ((linears, _),) = linear.build_data(cfg)[1]
    assert torch.equal(linears, images)
    ((knns, _),) = evaluation_loaders(args)[1]
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    assert torch.allclose(knns, images * std + mean, atol=1e-5)


def test_another_value_is_refused(turned):
    with pytest.raises(ConfigError, match=r"data\.exif: 'aply' is unknown.*'apply'"):
        prepare_datasets("custom", None, turned, exif="aply")
    with pytest.raises(ConfigError, match=r"data\.exif"):
        check(OmegaConf.create({"data": {"exif": "yes"}}), schema.Pretrain, {})
