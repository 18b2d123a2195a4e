# SPDX-License-Identifier: MIT
"""The embedded dataset: deterministic, split by original, and nothing to learn from raw pixels."""

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from solo.data.catalogue import DIGITS_MEAN, DIGITS_STD
from solo.data.datasets.digits import (
    DigitsDataset,
    _rendered_split,
    render,
)
from solo.errors import DataError

pytestmark = [
    pytest.mark.unit,
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]


def test_sizes_and_items():
    train, val = DigitsDataset(train=True), DigitsDataset(train=False)
    assert (len(train), len(val)) == (2 * 1437, 2 * 360)
    image, target = train[5]
    assert isinstance(image, Image.Image)
    assert image.size == (32, 32)
    assert image.mode == "RGB"
    assert target == load_digits().target[train.originals[5]]


def test_split_is_by_original():
    train, val = DigitsDataset(train=True), DigitsDataset(train=False, renderings=1)
    assert set(train.originals).isdisjoint(val.originals)
    assert sorted({*train.originals, *val.originals}) == list(range(1797))


def test_same_seed_same_bytes_and_other_seed_other_bytes():
    first = _rendered_split.__wrapped__(True, 1, 0)[0]
    again = _rendered_split.__wrapped__(True, 1, 0)[0]
    other = _rendered_split.__wrapped__(True, 1, 1)[0]
    assert np.array_equal(first, again)
    assert np.mean(first != other) > 0.9


def test_a_rendering_does_not_depend_on_how_many_there_are():
    one, three = DigitsDataset(renderings=1), DigitsDataset(renderings=3)
    assert np.array_equal(one.data, three.data[: len(one)])
    assert not np.array_equal(three.data[: len(one)], three.data[len(one) : 2 * len(one)])


def test_polarity_place_and_size_vary():
    """A centred blob drawn 400 times: light and dark about equally often, all over the frame."""
    blob = np.zeros((400, 8, 8), dtype=np.float32)
    blob[:, 3:5, 3:5] = 1
    images = render(blob, np.random.default_rng(0)).astype(float).mean(-1)
    paper = np.median(images.reshape(400, -1), axis=1)
    contrast = np.abs(images - paper[:, None, None])
    peak = contrast.reshape(400, -1).argmax(1)
    darker = images.reshape(400, -1)[np.arange(400), peak] < paper
    assert 0.4 < darker.mean() < 0.6
    assert np.std(peak % 32) > 2
    assert np.std(peak // 32) > 2


def test_normalisation_constants_are_those_of_the_training_split():
    data = DigitsDataset().data / 255
    assert np.allclose(data.mean((0, 1, 2)), DIGITS_MEAN, atol=1e-3)
    assert np.allclose(data.std((0, 1, 2)), DIGITS_STD, atol=1e-3)


def test_raw_pixels_are_near_chance():
    """A linear probe on pixels, which reaches 97% on the original digits, finds next to nothing."""
    train, val = DigitsDataset(train=True), DigitsDataset(train=False)

    def pixels(dataset):
        return dataset.data[:, ::2, ::2].reshape(len(dataset), -1) / 255 - 0.5

    probe = LogisticRegression(C=0.1, max_iter=60).fit(pixels(train), train.targets)
    assert probe.score(pixels(val), val.targets) < 0.25


def test_zero_renderings_is_an_error():
    with pytest.raises(DataError, match="renderings must be at least 1, got 0"):
        DigitsDataset(renderings=0)
