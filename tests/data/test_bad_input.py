# SPDX-License-Identifier: MIT
"""Missing, empty and broken data: one error that names the key or the file."""

import urllib.error

import pytest
from PIL import Image

from solo.data.classification_dataloader import prepare_data, prepare_transforms
from solo.data.datasets.images import ReadError, read_image
from solo.data.pretrain_dataloader import CustomDatasetWithoutLabels as NoLabels
from solo.data.pretrain_dataloader import dataset_with_index, prepare_dataloader, prepare_datasets
from solo.errors import ConfigError, DataError
from tests.data.conftest import write_folder

pytestmark = pytest.mark.unit


def to_tensor(image):
    return prepare_transforms("cifar10")[1](image)


def test_missing_folder_names_key_and_neighbour(folder):
    with pytest.raises(DataError, match=r"data.train_path: there is no folder .*'train'"):
        prepare_datasets("custom", None, folder.parent / "tran")


def test_missing_parent(tmp_path):
    with pytest.raises(DataError, match=r"nowhere' does not exist either"):
        prepare_datasets("imagenet", None, tmp_path / "nowhere" / "train")


def test_missing_validation_folder_names_its_own_key(folder):
    with pytest.raises(DataError, match=r"data.val_path: there is no folder"):
        prepare_data("custom", folder, folder.parent / "val", num_workers=0)


def test_file_instead_of_folder(folder):
    with pytest.raises(DataError, match="is a file, a folder is needed"):
        prepare_datasets("custom", None, folder / "ant" / "img_0.jpg")


def test_empty_folder(tmp_path):
    with pytest.raises(DataError, match=r"data.train_path: .* is empty: expected <class>/<image>"):
        prepare_datasets("custom", None, tmp_path)
    with pytest.raises(DataError, match=r"there are no images in .* or in its subfolders"):
        prepare_datasets("custom", None, tmp_path, no_labels=True)


def test_empty_class_folder_is_named(folder):
    (folder / "cat").mkdir()
    with pytest.raises(DataError, match=r"hold no images: .*cat"):
        prepare_datasets("custom", None, folder)


def test_flat_folder_points_to_no_labels(flat_folder):
    with pytest.raises(DataError, match=r"set data\.no_labels=True"):
        prepare_datasets("custom", None, flat_folder)


def test_class_folders_without_labels(folder):
    """Images of any depth count, as in every format."""
    assert len(NoLabels(folder)) == sum(path.is_file() for path in folder.rglob("*"))


def test_unknown_names():
    with pytest.raises(ConfigError, match=r"data.dataset: 'imagenet10' .* 'imagenet100'"):
        prepare_datasets("imagenet10", None)
    with pytest.raises(ConfigError, match=r"data.format: 'imagefolder' .*'image_folder'"):
        prepare_datasets("custom", None, data_format="imagefolder")


@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_broken_image_is_named(folder, damage):
    path = folder / "ant" / "img_3.jpg"
    contents = {"truncated": path.read_bytes()[:400], "empty": b"", "text": b"hello"}[damage]
    path.write_bytes(contents)
    with pytest.raises(ReadError, match=r"Cannot read image '.*ant/img_3.jpg'"):
        read_image(path)
    train = prepare_datasets("custom", to_tensor, folder)  # made without reading
    with pytest.raises(DataError, match=r"img_3.jpg"):
        train[3]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_broken_image_through_workers_is_one_line(folder, num_workers):
    (folder / "bee" / "img_2.jpg").write_bytes(b"no image")
    loader = prepare_dataloader(prepare_datasets("custom", to_tensor, folder), 4, num_workers)
    with pytest.raises(DataError) as caught:
        list(loader)
    message = str(caught.value)
    assert message.count("\n") == 0
    assert message.startswith("Cannot read image '")
    assert "bee/img_2.jpg': not an image. Replace or remove the file." in message
    assert "Traceback" not in message


def test_broken_image_of_a_flat_folder(flat_folder):
    (flat_folder / "img_1.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"flat/img_1.jpg"):
        dataset_with_index(NoLabels)(flat_folder)[1]


def test_unusual_images_become_rgb(tmp_path):
    for mode in ("L", "RGBA", "P", "CMYK", "1"):
        path = tmp_path / f"{mode}.{'jpg' if mode == 'CMYK' else 'png'}"
        Image.new(mode, (8, 8)).save(path)
        assert read_image(path).mode == "RGB"


def test_download_impossible(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", offline)
    with pytest.raises(DataError, match=r"cifar10 is not in .*not be downloaded .*no network"):
        prepare_datasets("cifar10", None, tmp_path, download=True)


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "stl10"])
def test_not_there_and_downloading_is_off(tmp_path, dataset):
    with pytest.raises(DataError, match=f"{dataset} is not in .* downloading is off"):
        prepare_datasets(dataset, None, tmp_path, download=False)


def test_uppercase_suffixes_count(tmp_path):
    write_folder(tmp_path / "f", suffix="JPEG")
    assert len(prepare_datasets("custom", None, tmp_path / "f")) == 12
