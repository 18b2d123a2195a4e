# SPDX-License-Identifier: MIT
"""Broken image files: named, counted, left out only if asked."""

import warnings

import pytest
from PIL import Image

from solo.data.datasets.unreadable import without_unreadable
from solo.data.pretrain_dataloader import prepare_datasets
from solo.data.resident.loader import prepare_resident
from solo.data.views.batched import build_views
from solo.errors import DataError

pytestmark = pytest.mark.unit
VIEWS = [{"crop_size": 32, "num_crops": 1}]


@pytest.fixture
def damaged(folder):
    """Twelve images; one truncated, one no image."""
    whole = (folder / "ant" / "img_3.jpg").read_bytes()
    (folder / "ant" / "img_3.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "bee" / "img_0.jpg").write_text("text")
    return folder


def resident(path, **options):
    return prepare_resident("custom", build_views("custom", VIEWS), path, **options)


def test_resident_counts_and_names_all_of_them(damaged):
    with pytest.raises(DataError) as caught:
        resident(damaged)
    text = str(caught.value)
    assert "data.train_path: 2 of 12 images" in text
    assert "data.skip_unreadable=True" in text
    assert "Cannot read image" in text
    assert "ant/img_3.jpg': " in text
    assert "bee/img_0.jpg': not an image" in text


def test_resident_leaves_them_out_if_asked(damaged):
    with pytest.warns(UserWarning, match=r"(?s)2 of 12 images.*left out.*img_3.jpg.*img_0.jpg"):
        made = resident(damaged, skip_unreadable=True)
    assert len(made) == len(made.labels) == 10
    assert made.targets == [0] * 5 + [1] * 5
    red = [Image.open(damaged / "bee" / f"img_{i}.jpg").getpixel((5, 5))[0] for i in range(1, 6)]
    assert made.images[5:, 0, 5, 5].tolist() == red


def test_ordinary_data_leaves_them_out_if_asked(damaged):
    def transform(image):
        return image.size

    dataset = prepare_datasets("custom", transform, damaged)
    with pytest.warns(UserWarning, match=r"2 of 12 images"):
        without_unreadable(dataset, "here", threads=2)
    assert len(dataset) == 10
    assert [dataset[i] for i in range(10)] == [(i, (40, 40), i // 5) for i in range(10)]


def test_whole_data_is_left_alone_without_a_word(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(without_unreadable(prepare_datasets("custom", None, folder), "here", 1)) == 12
        digits = prepare_datasets("digits", None)
        assert without_unreadable(digits, "here", 1) is digits
        assert len(resident(folder, skip_unreadable=True)) == 12


def test_many_are_counted_and_some_named(folder):
    for path in sorted(folder.rglob("*.jpg"))[:7]:
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"7 of 12 images") as caught:
        resident(folder)
    assert str(caught.value).count("Cannot read image") == 5
    assert "and 2 more" in str(caught.value)


@pytest.mark.parametrize("skip", [False, True])
def test_nothing_left_is_an_error(folder, skip):
    for path in folder.rglob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"12 of 12 images .* Nothing is left"):
        resident(folder, skip_unreadable=skip)
