# SPDX-License-Identifier: MIT
"""How often a crop fits nowhere, against torchvision's draws, and the warning in every format."""

import warnings

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torchvision import transforms as T

from scripts.utils.convert_imgfolder_to_h5 import convert_imgfolder_to_h5
from scripts.utils.convert_imgfolder_to_shards import convert_imgfolder_to_shards
from solo.data.pretrain_dataloader import prepare_datasets
from solo.data.views.long_images import (
    fallback_share,
    file_sizes,
    image_sizes,
    warn_of_long_images,
)
from solo.programs.pretrain import build_data

pytestmark = pytest.mark.unit
ENTRY = {"crop_size": 16, "num_crops": 2, "rrc": {"enabled": True}}


@pytest.mark.parametrize("shape", [(50, 400), (400, 50), (60, 240), (64, 96), (30, 600)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.3, 0.9)])
def test_share_is_torchvisions(shape, scale):
    n, image = 1500, torch.zeros(1, *shape)
    torch.manual_seed(0)
    boxes = [T.RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(n)]
    short, long = min(shape), max(shape)
    side = min(long, round(short * 4 / 3))  # of the central box
    central = (short, side) if shape[0] < shape[1] else (side, short)
    at = tuple((full - part) // 2 for full, part in zip(shape, central, strict=True))
    taken = np.mean([box == (*at, *central) for box in boxes])
    assert fallback_share(*shape, scale) == pytest.approx(taken, abs=0.04)


@pytest.fixture
def folder(tmp_path):
    """Eight images, two of them 20:1."""
    for i in range(8):
        path = tmp_path / "train" / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (400, 20) if i < 2 else (40, 30)).save(path)
    return tmp_path / "train"


def config(path, data_format, **rrc):
    entry = {**ENTRY, "rrc": {"enabled": True, **rrc}}
    data = {
        "dataset": "imagenet", "train_path": str(path), "val_path": None, "format": data_format,
        "no_labels": False, "fraction": -1, "num_workers": 0, "num_large_crops": 2,
        "num_small_crops": 0,
    }  # fmt: skip
    return OmegaConf.create(
        {
            "data": data, "augmentations": [entry], "debug_augmentations": False,
            "optimizer": {"batch_size": 2}, "devices": 1,
            "dali": {"device": "cpu", "encode_indexes_into_labels": False},
        }
    )  # fmt: skip


def test_every_format_warns_with_the_share(folder, tmp_path):
    convert_imgfolder_to_h5(folder, tmp_path / "train.h5")
    convert_imgfolder_to_shards(folder, tmp_path / "shards")
    said = r"25\.0% of the images \(2 of 8 looked at\).*400x20 in 100%.*rrc\.fallback=random"
    paths = {"image_folder": folder, "h5": tmp_path / "train.h5", "webdataset": tmp_path / "shards"}
    for data_format, path in paths.items():
        with pytest.warns(UserWarning, match=said):
            build_data(config(path, data_format))
        device = config(path, data_format)
        device.data.augment = "device"
        with pytest.warns(UserWarning, match=said):
            build_data(device)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            build_data(config(path, data_format, fallback="random"))


def test_resident_images_of_one_long_size(tmp_path):
    for i in range(4):
        path = tmp_path / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (400, 20)).save(path)
    with pytest.warns(UserWarning, match=r"100\.0% of the images .*400x20"):
        build_data(config(tmp_path, "resident"))


@pytest.mark.dali
def test_dali_warns(folder):
    pytest.importorskip("nvidia.dali")
    from tests.data.dali.loaders import FakeTrainer

    module = build_data(config(folder, "dali"))
    module.trainer = FakeTrainer()
    module.setup()
    with pytest.warns(UserWarning, match=r"25\.0% of the images \(2 of 8"):
        module.train_dataloader()


def test_ordinary_images_are_passed_over_in_silence(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_long_images([(375, 500), (500, 188), (200, 200)], [ENTRY])
        warn_of_long_images([], [ENTRY])
        warn_of_long_images([(20, 400)], [{"crop_size": 16, "rrc": {"enabled": False}}])


def test_sizes_are_read_without_decoding_and_broken_files_do_not_matter(folder):
    broken = folder / "a" / "2.jpg"
    broken.write_bytes(b"nothing")
    (folder / "b" / "3.jpg").write_bytes((folder / "b" / "3.jpg").read_bytes()[:-20])  # no pixels
    dataset = prepare_datasets("imagenet", None, folder)
    sizes = image_sizes(dataset)
    assert sorted(sizes) == [(20, 400)] * 2 + [(30, 40)] * 5
    assert sorted(file_sizes([path for path, _ in dataset.samples])) == sorted(sizes)
    assert dataset.transform is None
    digits = prepare_datasets("digits", None)
    assert image_sizes(digits) == []
