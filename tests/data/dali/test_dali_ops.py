# SPDX-License-Identifier: MIT
"""DALI's augmentations against Pillow and numpy, on the CPU."""

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps

pytest.importorskip("nvidia.dali")

from nvidia.dali import fn, pipeline_def, types

from solo.data.dali_dataloader import (
    RandomColorJitter,
    RandomGaussianBlur,
    RandomGrayScaleConversion,
    RandomSolarize,
    build_transform_pipeline_dali,
)
from solo.errors import ConfigError
from tests.data.conftest import augmentation

pytestmark = pytest.mark.dali
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
    rough = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(rough).resize((32, 32), Image.BICUBIC))


def apply(op, image, n=1):
    """`op` on n copies of an image."""

    @pipeline_def(batch_size=n, num_threads=1, device_id=None, seed=1, enable_conditionals=True)
    def graph():
        images = fn.external_source(lambda: [image] * n, layout="HWC", dtype=types.UINT8)
        return op(images)

    pipe = graph()
    pipe.build()
    return np.array(pipe.run()[0].as_tensor())


def test_solarize_is_pillows(image):
    expected = np.asarray(ImageOps.solarize(Image.fromarray(image), 128))
    assert np.array_equal(apply(RandomSolarize(prob=1.0), image)[0], expected)


def test_grayscale_is_pillows(image):
    expected = np.asarray(Image.fromarray(image).convert("L"), dtype=int)[..., None]
    got = apply(RandomGrayScaleConversion(prob=1.0, device="cpu"), image)[0]
    assert np.abs(got.astype(int) - expected).max() <= 1


def test_blur_smooths_like_pillows(image):
    """The sigma is drawn, so the result must lie between no blur and Pillow's strongest."""
    got = apply(RandomGaussianBlur(prob=1.0, device="cpu"), image, n=32).astype(float)
    strongest = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(2.0)))
    roughness = np.abs(np.diff(got, axis=2)).mean((1, 2, 3))
    assert roughness.max() <= np.abs(np.diff(image.astype(float), axis=1)).mean() + 1e-6
    assert roughness.min() >= 0.9 * np.abs(np.diff(strongest.astype(float), axis=1)).mean()
    assert roughness.std() > 0


def test_colour_jitter_of_brightness_alone_scales(image):
    dim = (image // 2).astype(np.uint8)
    got = apply(RandomColorJitter(0.4, 0, 0, 0, prob=1.0, device="cpu"), dim, n=64)
    factors = got.reshape(64, -1).astype(float).sum(1) / dim.sum()
    assert factors.min() >= 0.59
    assert factors.max() <= 1.41
    assert factors.std() > 0.15


def test_hue_is_counted_in_turns(image):
    jitter = RandomColorJitter(0, 0, 0, 0.1, device="cpu")
    assert jitter.hue == pytest.approx([-36, 36])
    assert (jitter.prob, jitter.brightness) == (0.8, [1, 1])


@pytest.mark.parametrize(
    "op",
    [
        RandomSolarize(prob=0.3),
        RandomGrayScaleConversion(prob=0.3, device="cpu"),
        RandomGaussianBlur(prob=0.3, device="cpu"),
        RandomColorJitter(0.4, 0.4, 0.4, 0.1, prob=0.3, device="cpu"),
    ],
)
def test_probability(op, image):
    changed = (apply(op, image, n=400) != image).any((1, 2, 3))
    assert 0.2 < changed.mean() < 0.4


def test_normalisation_and_layout(image):
    got = apply(build_transform_pipeline_dali("cifar100", PLAIN, "cpu"), image)[0]
    mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    assert got.dtype == np.float32
    assert np.allclose(got, ((image / 255 - mean) / std).transpose(2, 0, 1), atol=1e-4)


def test_own_statistics_of_a_custom_dataset(image):
    entry = {**PLAIN, "mean": [0.0, 0.5, 1.0], "std": [1.0, 0.5, 2.0]}
    got = apply(build_transform_pipeline_dali("custom", entry, "cpu"), image)[0]
    expected = (image / 255 - entry["mean"]) / entry["std"]
    assert np.allclose(got, expected.transpose(2, 0, 1), atol=1e-5)


def test_flip_and_resize(image):
    entry = {**PLAIN, "horizontal_flip": {"prob": 1.0}}
    plain = apply(build_transform_pipeline_dali("custom", PLAIN, "cpu"), image)[0]
    flipped = apply(build_transform_pipeline_dali("custom", entry, "cpu"), image)[0]
    assert np.allclose(flipped, plain[:, :, ::-1])
    wide = np.zeros((20, 60, 3), dtype=np.uint8)
    assert apply(build_transform_pipeline_dali("custom", PLAIN, "cpu"), wide).shape[1:] == (
        3,
        32,
        32,
    )


def test_everything_at_once(image):
    entry = augmentation(equalization=OFF, crop_size=24)
    got = apply(build_transform_pipeline_dali("imagenet100", entry, "cpu"), image, n=16)
    assert got.shape == (16, 3, 24, 24)
    assert np.isfinite(got).all()
    assert len({one.tobytes() for one in got}) == 16


def test_equalization_is_refused():
    with pytest.raises(NotImplementedError, match="DALI has no equalization"):
        build_transform_pipeline_dali("imagenet", augmentation(), "cpu")
    with pytest.raises(ConfigError, match="unknown key 'grayscal'"):
        build_transform_pipeline_dali("imagenet", {**PLAIN, "grayscal": OFF}, "cpu")
