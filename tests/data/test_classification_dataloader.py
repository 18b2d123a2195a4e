# SPDX-License-Identifier: MIT
"""Labelled sets, their transforms and loaders."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import RandomSampler, SequentialSampler
from torchvision import transforms as T
from torchvision.datasets import CIFAR10, ImageFolder

from solo.data.catalogue import info_of
from solo.data.classification_dataloader import (
    build_custom_pipeline,
    prepare_data,
    prepare_dataloaders,
    prepare_datasets,
    prepare_transforms,
    prepare_val_data,
)
from solo.data.shown import shown
from solo.errors import ConfigError, DataError
from tests.data.conftest import write_folder
from tests.data.test_pretrain_dataloader import write_cifar

pytestmark = pytest.mark.unit
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR = ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261))


@pytest.fixture
def val_folder(tmp_path):
    return write_folder(tmp_path / "val", per_class=3)


@pytest.mark.parametrize(
    ("dataset", "size", "stats", "val_steps"),
    [
        ("cifar10", 32, CIFAR, ["Resize"]),
        ("cifar100", 32, CIFAR, ["Resize"]),
        ("stl10", 96, ((0.4914, 0.4823, 0.4466), (0.247, 0.243, 0.261)), ["Resize"]),
        ("imagenet", 224, IMAGENET, ["Resize", "CenterCrop"]),
        ("imagenet100", 224, IMAGENET, ["Resize", "CenterCrop"]),
        ("custom", 224, IMAGENET, ["Resize", "CenterCrop"]),
    ],
)
def test_transforms(dataset, size, stats, val_steps):
    train, val = prepare_transforms(dataset)
    crop, flip, _, normalize = train.transforms
    assert (crop.size, crop.scale) == ((size, size), (0.08, 1.0))
    assert crop.interpolation == T.InterpolationMode.BILINEAR
    assert flip.p == 0.5
    assert (tuple(normalize.mean), tuple(normalize.std)) == stats
    assert [type(t).__name__ for t in val.transforms] == [*val_steps, "ToTensor", "Normalize"]
    assert (tuple(val.transforms[-1].mean), tuple(val.transforms[-1].std)) == stats
    for shape in ((size, size, 3), (500, 300, 3)):  # its own size, and a photograph
        image = Image.fromarray(np.zeros(shape, dtype=np.uint8))
        assert train(image).shape == val(image).shape == (3, size, size)


def test_images_of_the_data_sets_own_size_are_shown_as_they_are():
    pixels = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    shown = prepare_transforms("stl10")[1](Image.fromarray(pixels)).numpy()
    mean, std = ([[[v]] for v in row] for row in ((0.4914, 0.4823, 0.4466), (0.247, 0.243, 0.261)))
    expected = (pixels.transpose(2, 0, 1) / 255 - mean) / std
    np.testing.assert_allclose(shown, expected, atol=1e-5)


def test_custom_pipeline_names():
    assert sorted(build_custom_pipeline()) == ["T_train", "T_val"]


def test_cifar_splits(tmp_path, monkeypatch):
    write_cifar(tmp_path, "cifar10")
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    train, val = prepare_datasets("cifar10", None, None, tmp_path, tmp_path, download=False)
    assert isinstance(train, CIFAR10)
    assert (len(train), len(val)) == (100, 20)


@pytest.mark.parametrize("dataset", ["imagenet", "imagenet100", "custom"])
def test_folders_and_loaders(dataset, folder, val_folder):
    train, val = prepare_data(dataset, folder, val_folder, batch_size=5, num_workers=0)
    assert isinstance(train.dataset, ImageFolder)
    assert (len(train), len(val)) == (2, 2)
    assert isinstance(train.sampler, RandomSampler)
    assert isinstance(val.sampler, SequentialSampler)
    images, targets = next(iter(val))
    assert images.shape == (5, 3, 224, 224)
    assert targets.tolist() == [0, 0, 0, 1, 1]


def test_fraction_acts_on_training_only(folder, val_folder):
    train, val = prepare_data("custom", folder, val_folder, num_workers=0, data_fraction=0.5)
    assert (len(train.dataset), len(val.dataset)) == (6, 6)


def test_digits():
    train, val = prepare_data("digits", batch_size=64, num_workers=0)
    assert (len(train.dataset), len(val.dataset)) == (2874, 720)
    images, _ = next(iter(val))
    assert images.shape == (64, 3, 32, 32)
    assert "RandomHorizontalFlip" not in repr(train.dataset.transform)


def test_auto_augment_is_timm_randaugment(folder, val_folder):
    train, _ = prepare_data("custom", folder, val_folder, num_workers=0, auto_augment=True)
    text = repr(train.dataset.transform)
    assert "RandAugment" in text
    assert "RandomErasing" in text
    assert train.dataset[0][0].shape == (3, 224, 224)


def test_the_share_that_crops_show_at_least(folder, val_folder):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    whole, seen = (show(image) for show in prepare_transforms("cifar10", crop_min_scale=1.0))
    assert torch.equal(whole, seen) or torch.equal(whole, seen.flip(-1))
    train, _ = prepare_data("custom", folder, val_folder, num_workers=0, crop_min_scale=0.5)
    crop = train.dataset.transform.transforms[0]
    assert (crop.scale, crop.size) == ((0.5, 1.0), (224, 224))
    auto = {"auto_augment": True, "crop_min_scale": 0.5}
    train, _ = prepare_data("custom", folder, val_folder, num_workers=0, **auto)
    assert train.dataset.transform.transforms[0].scale == (0.5, 1.0)
    with pytest.raises(ConfigError, match=r"crop_min_scale=0\.5: images of digits are shifted"):
        prepare_transforms("digits", crop_min_scale=0.5)


def test_validation_alone(val_folder):
    custom = info_of("custom")
    loader = prepare_val_data(custom, shown(custom, None), val_folder, batch_size=4, num_workers=0)
    assert [len(targets) for _, targets in loader] == [4, 2]


def test_unknown_dataset():
    with pytest.raises(ConfigError, match=r"'cifar1O' is not supported. Did you mean 'cifar10'"):
        prepare_transforms("cifar1O")


def test_splits_with_other_classes(folder, tmp_path):
    other = write_folder(tmp_path / "other", classes=("ant", "bee", "cat"))
    with pytest.raises(DataError, match=r"has 2 classes and data.val_path 3; .*: cat"):
        prepare_data("custom", folder, other, num_workers=0)


def test_dataloaders_take_any_dataset(folder):
    train = ImageFolder(str(folder), T.ToTensor())
    loaders = prepare_dataloaders(train, train, batch_size=4, num_workers=0)
    assert [len(loader) for loader in loaders] == [3, 3]
