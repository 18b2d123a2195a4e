# SPDX-License-Identifier: MIT
"""HDF5 files: written from a folder, read back, cached index, broken files."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from scripts.utils.convert_imgfolder_to_h5 import convert_imgfolder_to_h5
from solo.data.classification_dataloader import (
    prepare_data,
    prepare_transforms,
)
from solo.data.h5_dataset import H5Dataset, imagenet100_classes
from solo.data.pretrain_dataloader import prepare_dataloader, prepare_datasets
from solo.data.shards.stored_index import index_paths
from solo.errors import ConfigError, DataError
from tests.data.conftest import write_folder

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def h5_file(folder):
    path = folder.parent / "train.h5"
    convert_imgfolder_to_h5(folder, path)
    return path


def to_tensor(image):
    return prepare_transforms("cifar10")[1](image)


def test_layout_is_raw_bytes_per_class(folder, h5_file):
    with h5py.File(h5_file) as file:
        assert sorted(file) == ["ant", "bee"]
        stored = file["bee/img_4.jpg"]
        assert stored.dtype == np.uint8
        assert (stored.compression, stored.compression_opts) == ("gzip", 9)
        assert stored[()].tobytes() == (folder / "bee" / "img_4.jpg").read_bytes()
    assert [p.name for p in h5_file.parent.iterdir() if "partial" in p.name] == []


@pytest.mark.parametrize("dataset", ["imagenet", "custom"])
def test_same_items_as_the_folder(dataset, folder, h5_file):
    expected, got = ImageFolder(str(folder)), H5Dataset(dataset, h5_file)
    assert got.classes == expected.classes
    assert got.class_to_idx == expected.class_to_idx
    assert len(got) == len(expected)
    for (image, label), (other, other_label) in zip(expected, got, strict=True):
        assert label == other_label
        assert np.array_equal(np.asarray(image), np.asarray(other))
    assert got._data[7] == ("bee", "img_1.jpg", 1)


def test_index_is_cached_beside_the_file_and_dies_with_it(folder, h5_file, monkeypatch):
    H5Dataset("imagenet", h5_file)
    index = h5_file.with_name("train.h5.index.txt")
    assert index.is_file()
    monkeypatch.setattr(H5Dataset, "_find_classes", lambda *_: pytest.fail("index was not used"))
    assert len(H5Dataset("imagenet", h5_file)) == 12
    monkeypatch.undo()
    with h5py.File(h5_file, "a") as file:
        del file["bee/img_4.jpg"]
    assert len(H5Dataset("imagenet", h5_file)) == 11


def test_index_of_a_read_only_folder_is_keyed_by_the_full_path(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    one, other = index_paths(tmp_path / "a" / "train.h5"), index_paths(tmp_path / "b/train.h5")
    assert one[1].parent == other[1].parent == tmp_path / "cache" / "solo-learn-sparse"
    assert one[1] != other[1]


def test_damaged_index_is_rebuilt(h5_file):
    H5Dataset("imagenet", h5_file)
    index = index_paths(h5_file)[0]
    index.write_text(index.read_text()[:-9])
    assert len(H5Dataset("imagenet", h5_file)) == 12


def test_imagenet100_keeps_its_classes(tmp_path):
    known = imagenet100_classes()
    assert len(set(known)) == 100
    write_folder(tmp_path / "in", classes=("n00000001", known[3], known[99]), per_class=2)
    convert_imgfolder_to_h5(tmp_path / "in", tmp_path / "in.h5")
    assert H5Dataset("imagenet100", tmp_path / "in.h5").classes == [known[3], known[99]]
    assert len(H5Dataset("imagenet", tmp_path / "in.h5").classes) == 3


def test_imagenet100_without_its_classes_warns(h5_file):
    with pytest.warns(UserWarning, match="no class of imagenet100"):
        assert len(H5Dataset("imagenet100", h5_file)) == 12


def test_through_the_loaders(h5_file):
    train = prepare_datasets("imagenet", to_tensor, h5_file, data_format="h5")
    seen = {}
    for indexes, _, targets in prepare_dataloader(train, 4, num_workers=2):
        seen.update(zip(indexes.tolist(), targets.tolist(), strict=True))
    assert seen == {i: int(i >= 6) for i in range(12)}
    half = prepare_datasets("imagenet", to_tensor, h5_file, data_format="h5", data_fraction=0.5)
    assert sorted(label for *_, label in half._data) == [0, 0, 0, 1, 1, 1]
    _, val = prepare_data("custom", h5_file, h5_file, data_format="h5", num_workers=0)
    assert len(val.dataset) == 12


def test_pickle_leaves_the_handle_behind(h5_file):
    dataset = H5Dataset("imagenet", h5_file)
    dataset[0]
    copy = pickle.loads(pickle.dumps(dataset))
    assert np.array_equal(np.asarray(copy[0][0]), np.asarray(dataset[0][0]))


def test_handle_is_opened_anew_in_each_process(h5_file):
    dataset = H5Dataset("imagenet", h5_file)
    assert dataset.h5_file is dataset.h5_file
    opened = dataset.h5_file
    dataset._handle = (os.getpid() + 1, opened)
    assert dataset.h5_file is not opened


def test_bad_files(tmp_path, h5_file):
    with pytest.raises(ConfigError, match=r"data.format=h5 does not go with .*'cifar10'"):
        H5Dataset("cifar10", h5_file)
    with pytest.raises(DataError, match=r"data.train_path: .*none.h5' is missing"):
        H5Dataset("imagenet", tmp_path / "none.h5")
    with pytest.raises(DataError, match=r"data.val_path: .* is a folder"):
        H5Dataset("imagenet", tmp_path, key="data.val_path")
    cut = tmp_path / "cut.h5"
    cut.write_bytes(h5_file.read_bytes()[: h5_file.stat().st_size // 2])
    with pytest.raises(DataError, match=r"cut.h5' is truncated or no HDF5 file"):
        H5Dataset("imagenet", cut)
    with h5py.File(tmp_path / "empty.h5", "w"):
        pass
    with pytest.raises(DataError, match=r"empty.h5' has no class group with images"):
        H5Dataset("imagenet", tmp_path / "empty.h5")


def test_broken_image_inside_is_named(h5_file):
    with h5py.File(h5_file, "a") as file:
        del file["ant/img_2.jpg"]
        file["ant/img_2.jpg"] = np.frombuffer(b"no image", dtype=np.uint8)
    dataset = H5Dataset("imagenet", h5_file, to_tensor)
    with pytest.raises(DataError, match=r"train.h5:/ant/img_2.jpg': not an image"):
        dataset[2]


def test_converter_refuses_to_overwrite_and_names_bad_folders(folder, h5_file, tmp_path):
    with pytest.raises(DataError, match="exists already"):
        convert_imgfolder_to_h5(folder, h5_file)
    with pytest.raises(DataError, match="--folder_path: there is no folder"):
        convert_imgfolder_to_h5(tmp_path / "none", tmp_path / "x.h5")
    assert not (tmp_path / "x.h5").exists()


def run(script, *args):
    command = [sys.executable, str(ROOT / "scripts" / "utils" / script), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)


def test_make_imagenet100_links_the_classes(tmp_path):
    for split in ("train", "val"):
        for name in [*imagenet100_classes(), "n00000001"]:
            (tmp_path / "full" / split / name).mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "full" / "val" / "n01558993" / "a.JPEG")
    for _ in range(2):  # the second run finds everything there
        done = run("make_imagenet100.py", tmp_path / "full", tmp_path / "out")
        assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(tmp_path / "out" / "train")) == imagenet100_classes()
    assert (tmp_path / "out" / "val" / "n01558993" / "a.JPEG").is_file()
    assert (tmp_path / "out" / "val" / "n01558993").is_symlink()


def test_make_imagenet100_without_imagenet(tmp_path):
    done = run("make_imagenet100.py", tmp_path, tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "lacks 200 of the 200 class folders" in done.stderr
    assert done.stderr.count("\n") == 1


def test_converter_command_line(folder, tmp_path):
    arguments = ("--folder_path", folder, "--h5_path", tmp_path / "cli.h5")
    assert run("convert_imgfolder_to_h5.py", *arguments).returncode == 0
    assert len(H5Dataset("imagenet", tmp_path / "cli.h5")) == 12
    assert run("convert_imgfolder_to_h5.py", *arguments).returncode == 2
