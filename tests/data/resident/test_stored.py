# SPDX-License-Identifier: MIT
"""Decoded images are kept, and are the ones that decoding again would give."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from solo.data.datasets.unreadable import read_all
from solo.data.pretrain_dataloader import prepare_datasets
from solo.data.resident import images, stored
from solo.errors import DataError

N = 24


def picture(path, seed):
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "SMALLEST", 0)
    monkeypatch.setattr(images, "SMALLEST", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for index in range(N):
        path = tmp_path / "train" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(path, index)
    return tmp_path / "train"


def read(folder, capsys=None, **options):
    """(images, labels, how many files were decoded), as a run reads them."""
    decoded = []

    def counting(dataset, threads):
        for image in read_all(dataset, threads):
            decoded.append(image)
            yield image

    before, images.read_all = images.read_all, counting
    try:
        size = options.pop("size", None)
        skip = options.pop("skip_unreadable", False)
        dataset = prepare_datasets("custom", None, train_data_path=folder, **options)
        found, labels = images.resident_images(dataset, "there", size, skip, threads=2)
    finally:
        images.read_all = before
    return found, labels, len(decoded)


def pixels(folder):
    """By Pillow, in the order of the data set."""
    files = sorted(folder.glob("a/*.png")) + sorted(folder.glob("b/*.png"))
    return torch.stack([torch.tensor(np.array(Image.open(f))).permute(2, 0, 1) for f in files])


def test_the_second_start_decodes_nothing(folder):
    first, labels, count = read(folder)
    assert count == N
    again, labels_again, count = read(folder)
    assert count == 0
    assert torch.equal(first, again)
    assert torch.equal(again, pixels(folder))
    assert labels == labels_again


def test_what_has_changed_is_decoded_again_and_nothing_else(folder):
    read(folder)
    picture(folder / "a" / "4.png", 99)
    found, _, count = read(folder)
    assert count == 1
    assert torch.equal(found, pixels(folder))
    assert read(folder)[2] == 0  # and is kept


def test_a_change_that_hides_is_seen(folder):
    """Same size, same time of modification."""
    path = folder / "a" / "4.png"
    read(folder)
    before = path.stat()
    one, other = path.read_bytes(), (folder / "b" / "5.png").read_bytes()
    size = max(len(one), len(other))
    path.write_bytes(other.ljust(size, b"\0"))
    read(folder)
    path.write_bytes(one.ljust(size, b"\0"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    found, _, count = read(folder)
    assert count == 1
    assert torch.equal(found, pixels(folder))


def test_new_times_of_the_same_content(folder):
    read(folder)
    for path in folder.rglob("*.png"):
        os.utime(path, (1, 1))
    found, _, count = read(folder)
    assert count == 0
    assert torch.equal(found, pixels(folder))


def test_a_new_file_makes_another_list(folder):
    read(folder)
    picture(folder / "a" / "90.png", 90)
    found, _, _ = read(folder)
    assert torch.equal(found, pixels(folder))


@pytest.mark.parametrize("options", [{"size": 8}, {"exif": "apply"}])
def test_another_way_of_reading_is_kept_apart(folder, options):
    read(folder)
    found, _, count = read(folder, **options)
    assert count == N
    assert found.shape[-1] == options.get("size", 12)


def test_writing_into_the_images_does_not_reach_the_file(folder):
    read(folder)
    first, *_ = read(folder)
    first.zero_()
    assert torch.equal(read(folder)[0], pixels(folder))


def test_broken_files_are_remembered(folder):
    (folder / "a" / "2.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match=r"1 of 24 images .*"):
        found, labels, count = read(folder, skip_unreadable=True)
    assert (len(found), len(labels), count) == (N - 1, N - 1, N)
    with pytest.warns(UserWarning, match=r"a/2\.png"):
        again, _, count = read(folder, skip_unreadable=True)
    assert count == 0
    assert torch.equal(found, again)
    with pytest.raises(DataError, match=r"1 of 24 images .*"):
        read(folder)
    picture(folder / "a" / "2.png", 2)  # mended
    mended, _, count = read(folder)
    assert count == 1
    assert torch.equal(mended, pixels(folder))


@pytest.mark.parametrize("damage", ["index.npz", "images.npy"])
def test_a_damaged_cache_is_made_anew(folder, damage):
    read(folder)
    (path,) = stored.cache_folder().glob(f"*/{damage}")
    path.write_bytes(path.read_bytes()[:200])
    found, _, count = read(folder)
    assert count == N
    assert torch.equal(found, pixels(folder))


def test_halves_of_two_writings_do_not_go_together(folder):
    """A kill between the two files leaves new images under an old index."""
    read(folder)
    (path,) = stored.cache_folder().glob("*/images.npy")
    content = np.load(path)
    np.save(path, content[::-1].copy())
    assert torch.equal(read(folder)[0], pixels(folder))


def test_without_a_place_to_keep_them(folder, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert torch.equal(read(folder)[0], pixels(folder))
    assert torch.equal(read(folder)[0], pixels(folder))


def test_little_is_not_kept(folder, monkeypatch):
    monkeypatch.setattr(stored, "SMALLEST", 10**9)
    read(folder)
    assert not stored.cache_folder().exists()


def test_both_starts_say_how_long_they_took(folder, capsys):
    read(folder)
    assert "decoded 24 of 24 images in" in capsys.readouterr().out
    read(folder)
    assert "found 24 images in" in capsys.readouterr().out
