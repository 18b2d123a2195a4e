# SPDX-License-Identifier: MIT
"""The schema of an augmentation entry and the pipeline that is built from it."""

import warnings

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image, ImageFilter, ImageOps
from torchvision import transforms as T

from solo.data.pretrain_dataloader import (
    Equalization,
    FullTransformPipeline,
    GaussianBlur,
    NCropAugmentation,
    Solarization,
    build_transform_pipeline,
    prepare_n_crop_transform,
)
from solo.data.views.augmentation_keys import checked_augmentation
from solo.errors import ConfigError
from tests.data.conftest import augmentation

pytestmark = pytest.mark.unit
OFF = {"prob": 0.0}
PLAIN = {
    "rrc": {"enabled": False},
    "color_jitter": OFF,
    "grayscale": OFF,
    "gaussian_blur": OFF,
    "solarization": OFF,
    "equalization": OFF,
    "horizontal_flip": OFF,
    "crop_size": 32,
    "num_crops": 1,
}


@pytest.fixture
def image():
    pixels = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def names(pipeline):
    """Operation names in order; RandomApply by what it applies."""
    return [
        type(t.transforms[0] if isinstance(t, T.RandomApply) else t).__name__
        for t in pipeline.transforms
    ]


def test_order_of_operations():
    assert names(build_transform_pipeline("cifar10", augmentation())) == [
        "RandomResizedCrop", "ColorJitter", "RandomGrayscale", "GaussianBlur", "Solarization",
        "Equalization", "RandomHorizontalFlip", "ToTensor", "Normalize",
    ]  # fmt: skip


def test_operations_without_probability_are_left_out():
    steps = names(build_transform_pipeline("cifar10", PLAIN))
    assert steps == ["Resize", "CenterCrop", "ToTensor", "Normalize"]


def test_parameters_reach_the_operations():
    crop, jitter, gray, *_ = build_transform_pipeline("cifar10", augmentation()).transforms
    assert (crop.size, crop.scale) == ((32, 32), (0.2, 1.0))
    assert crop.interpolation == T.InterpolationMode.BICUBIC
    assert jitter.p == 0.8
    assert jitter.transforms[0].saturation == (0.8, 1.2)
    assert jitter.transforms[0].hue == (-0.1, 0.1)
    assert gray.p == 0.2


@pytest.mark.parametrize(
    ("dataset", "mean", "std"),
    [
        ("cifar10", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        ("cifar100", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
        ("stl10", (0.4914, 0.4823, 0.4466), (0.247, 0.243, 0.261)),
        ("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("imagenet100", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("custom", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ],
)
def test_statistics(dataset, mean, std, image):
    normalize = build_transform_pipeline(dataset, PLAIN).transforms[-1]
    assert (tuple(normalize.mean), tuple(normalize.std)) == (mean, std)
    square = image.resize((32, 32))
    expected = (np.asarray(square) / 255 - mean) / std
    got = build_transform_pipeline(dataset, PLAIN)(square)
    assert np.allclose(got.permute(1, 2, 0).numpy(), expected, atol=1e-5)


def test_own_statistics_of_a_custom_dataset():
    entry = {**PLAIN, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    normalize = build_transform_pipeline("custom", entry).transforms[-1]
    assert (tuple(normalize.mean), tuple(normalize.std)) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_dictconfig_and_dict_are_the_same():
    from_dict = build_transform_pipeline("cifar10", augmentation())
    from_config = build_transform_pipeline("cifar10", OmegaConf.create(augmentation()))
    assert repr(from_dict) == repr(from_config)


def test_crops_and_their_repr(image):
    t = build_transform_pipeline("cifar10", augmentation())
    small = build_transform_pipeline("cifar10", augmentation(crop_size=18))
    full = FullTransformPipeline([NCropAugmentation(t, 2), NCropAugmentation(small, 3)])
    views = full(image)
    assert [tuple(v.shape) for v in views] == [(3, 32, 32)] * 2 + [(3, 18, 18)] * 3
    assert not torch.equal(views[0], views[1])
    assert repr(full) == f"2 x [{t}]\n3 x [{small}]"
    assert repr(prepare_n_crop_transform([t, small], [2, 3])) == repr(full)


def test_crop_counts_must_match_the_pipelines():
    with pytest.raises(ConfigError, match="1 augmentation pipelines but 2 crop counts"):
        prepare_n_crop_transform([lambda x: x], num_crops_per_aug=[1, 2])


def test_pil_operations_against_pillow(image):
    assert Solarization()(image) == ImageOps.solarize(image, threshold=128)
    assert Equalization()(image) == ImageOps.equalize(image)
    blurred = GaussianBlur([1.5, 1.5])(image)
    assert blurred == image.filter(ImageFilter.GaussianBlur(1.5))
    assert GaussianBlur().sigma == [0.1, 2.0]


def test_enabled_is_accepted_with_a_warning_and_acts_only_in_rrc():
    entry = augmentation(grayscale={"prob": 0.2, "enabled": False})
    with pytest.warns(UserWarning, match=r"grayscale.enabled=False has no effect"):
        assert "RandomGrayscale" in names(build_transform_pipeline("cifar10", entry))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_transform_pipeline("cifar10", augmentation())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"gausian_blur": {"prob": 1}},
            r"unknown key 'gausian_blur'. .*'gaussian_blur'",
        ),
        ({"grayscale": {"prb": 1}}, r"grayscale: unknown key 'prb'. Did you mean 'prob'"),
        (
            {"rrc": {"enabled": True, "min_scale": 0.1}},
            r"rrc: unknown key 'min_scale'. .*'crop_mi",
        ),
        (
            {"grayscale": {"prob": 1.5}},
            r"grayscale.prob=1.5 is out of range: it must be at least 0 and at most 1",
        ),
        ({"grayscale": {"prob": "often"}}, r"grayscale.prob must be a number, got 'often'"),
        ({"grayscale": 0.2}, r"grayscale: expected a mapping with prob, got 0.2"),
        ({"color_jitter": {"prob": 0.5, "hue": 0.1}}, r"color_jitter: brightness is missing"),
        ({"crop_size": None}, "crop_size is missing"),
        ({"crop_size": 0}, "crop_size must be a positive integer, got 0"),
        ({"rrc": {"enabled": True, "crop_min_scale": 0.9, "crop_max_scale": 0.5}}, "0.9 and 0.5"),
        ({"rrc": {"enabled": "yes"}}, "rrc.enabled must be True or False"),
        ({"mean": [0.5]}, "mean has 1 numbers and std 3"),
    ],
)
def test_bad_entries(change, message):
    with pytest.raises(ConfigError, match=message):
        checked_augmentation(augmentation(**change), "augmentations[0]")


def test_error_says_which_entry():
    with pytest.raises(ConfigError, match=r"^augmentations\[1\].solarization.prob"):
        checked_augmentation(augmentation(solarization={"prob": -1}), "augmentations[1]")


def test_padded_crops_and_small_rotations():
    entry = {"crop_size": 32, "num_crops": 1, "padding": 2, "rotation": {"prob": 1.0, "degrees": 9}}
    crop, turn = build_transform_pipeline("cifar10", entry).transforms[:2]
    assert isinstance(crop, T.RandomCrop)
    assert (crop.size, crop.padding) == ((32, 32), 2)
    assert (turn.p, turn.transforms[0].degrees) == (1.0, [-9.0, 9.0])
    with pytest.raises(ConfigError, match="padding is for crops of fixed size"):
        checked_augmentation({**entry, "rrc": {"enabled": True}})
    with pytest.raises(ConfigError, match=r"rotation: degrees is missing"):
        checked_augmentation({**entry, "rotation": {"prob": 0.5}})


def test_place_of_the_fallback():
    entry = {"crop_size": 32, "rrc": {"enabled": True}}
    assert checked_augmentation(entry)["rrc"]["fallback"] == "center"
    entry["rrc"]["fallback"] = "randon"
    with pytest.raises(ConfigError, match=r"rrc\.fallback: 'randon' is unknown.*'random'"):
        checked_augmentation(entry)


def test_a_value_that_is_still_to_be_given_is_named():
    entry = OmegaConf.create(augmentation(color_jitter={"brightness": "???"}))
    with pytest.raises(ConfigError, match=r"color_jitter\.brightness is missing"):
        checked_augmentation(entry)
