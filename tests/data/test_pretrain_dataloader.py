# SPDX-License-Identifier: MIT
"""Training sets for pretraining: indexes first, classes of torchvision, fractions, no labels."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.model_selection import train_test_split
from torchvision.datasets import CIFAR10, CIFAR100, STL10, ImageFolder

from solo.data.datasets.digits import DigitsDataset
from solo.data.pretrain_dataloader import (
    CustomDatasetWithoutLabels,
    FullTransformPipeline,
    NCropAugmentation,
    build_transform_pipeline,
    dataset_with_index,
    prepare_dataloader,
    prepare_datasets,
    require_full_batch,
)
from solo.errors import ConfigError
from tests.data.conftest import augmentation, write_folder

pytestmark = pytest.mark.unit


@pytest.fixture
def views():
    pipeline = build_transform_pipeline("custom", augmentation())
    return FullTransformPipeline([NCropAugmentation(pipeline, 2)])


def write_cifar(root, dataset, n=20):
    """Files in the layout that torchvision extracts."""
    labels = [i % 10 for i in range(n)]
    data = np.random.default_rng(0).integers(0, 256, (n, 3072), dtype=np.uint8)
    if dataset == "cifar10":
        folder, meta, key = root / "cifar-10-batches-py", "batches.meta", "label_names"
        files, label_key = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"], "labels"
    else:
        folder, meta, key = root / "cifar-100-python", "meta", "fine_label_names"
        files, label_key = ["train", "test"], "fine_labels"
    folder.mkdir(parents=True)
    for name in files:
        (folder / name).write_bytes(pickle.dumps({"data": data, label_key: labels}))
    (folder / meta).write_bytes(pickle.dumps({key: [str(i) for i in range(10)]}))


@pytest.mark.parametrize(("dataset", "cls"), [("cifar10", CIFAR10), ("cifar100", CIFAR100)])
def test_cifar(dataset, cls, tmp_path, views, monkeypatch):
    write_cifar(tmp_path, dataset)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    train = prepare_datasets(dataset, views, train_data_path=tmp_path, download=False)
    assert isinstance(train, cls)
    assert type(train).__name__ == "DatasetWithIndex"
    index, images, target = train[7]
    assert (index, len(images), target) == (7, 2, 7)
    assert images[0].shape == (3, 32, 32)


def test_stl10_is_train_and_unlabelled(tmp_path, views, monkeypatch):
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3 * 96 * 96), dtype=np.uint8)
    pixels.tofile(folder / "train_X.bin")
    pixels.tofile(folder / "unlabeled_X.bin")
    np.arange(1, 6, dtype=np.uint8).tofile(folder / "train_y.bin")
    (folder / "class_names.txt").write_text("\n".join("abcdefghij"))
    monkeypatch.setattr("torchvision.datasets.stl10.check_integrity", lambda *_: True)
    train = prepare_datasets("stl10", views, train_data_path=tmp_path, download=False)
    assert isinstance(train, STL10)
    assert len(train) == 10
    assert train[2][2] == 2
    assert train[7][2] == -1


@pytest.mark.parametrize("dataset", ["imagenet", "imagenet100", "custom"])
def test_image_folder(dataset, folder, views):
    train = prepare_datasets(dataset, views, train_data_path=folder)
    assert isinstance(train, ImageFolder)
    assert train.classes == ["ant", "bee"]
    assert [train[i][0] for i in (0, 11)] == [0, 11]
    assert [train[i][2] for i in (0, 11)] == [0, 1]


def test_custom_without_labels(flat_folder, views):
    (flat_folder / "notes.txt").write_text("not an image")
    train = prepare_datasets("custom", views, train_data_path=flat_folder, no_labels=True)
    assert isinstance(train, CustomDatasetWithoutLabels)
    assert train.images == sorted(f"img_{i}.jpg" for i in range(8))
    assert train[3][0] == 3
    assert train[3][2] == -1
    assert len(train[3][1]) == 2


def test_one_class_is_enough_for_pretraining(tmp_path, views):
    root = write_folder(tmp_path / "one", classes=("only",))
    assert len(prepare_datasets("custom", views, train_data_path=root)) == 6


def test_digits(views):
    train = prepare_datasets("digits", views)
    assert isinstance(train, DigitsDataset)
    assert len(train) == 2874
    assert train[2873][0] == 2873


def test_fraction_is_stratified_and_the_draw_of_scikit_learn(tmp_path, views):
    root = write_folder(tmp_path / "train", classes=("a", "b", "c"), per_class=8)
    whole = prepare_datasets("custom", views, train_data_path=root)
    half = prepare_datasets("custom", views, train_data_path=root, data_fraction=0.5)
    paths, labels = zip(*whole.samples, strict=True)
    expected, _, expected_labels, _ = train_test_split(
        paths, labels, train_size=0.5, stratify=labels, random_state=42
    )
    assert half.samples == list(zip(expected, expected_labels, strict=True))
    assert np.bincount([label for _, label in half.samples]).tolist() == [4, 4, 4]
    assert half[11][0] == 11


def test_fraction_without_labels(flat_folder, views):
    train = prepare_datasets("custom", views, flat_folder, no_labels=True, data_fraction=0.25)
    expected, _ = train_test_split(
        sorted(p.name for p in flat_folder.iterdir()), train_size=0.25, random_state=42
    )
    assert train.images == expected


def test_fraction_of_array_datasets():
    train = prepare_datasets("digits", None, data_fraction=0.1)
    whole = DigitsDataset()
    assert len(train) == len(train.data) == len(train.originals) == 287
    counts = np.bincount(train.targets) / np.bincount(whole.targets)
    assert np.allclose(counts, 0.1, atol=0.005)
    position = train.originals[0]
    assert train.targets[0] == whole.targets[list(whole.originals).index(position)]


@pytest.mark.parametrize("fraction", [0, 1, 1.5, -0.5])
def test_fraction_out_of_range(folder, fraction):
    with pytest.raises(ConfigError, match=f"data.fraction={fraction} is out of range"):
        prepare_datasets("custom", None, folder, data_fraction=fraction)


def test_fraction_too_small_to_stratify(folder):
    with pytest.raises(ConfigError, match=r"data.fraction=0.01 cannot be drawn"):
        prepare_datasets("custom", None, folder, data_fraction=0.01)


def test_batches(folder, views):
    loader = prepare_dataloader(prepare_datasets("custom", views, folder), 5, num_workers=1)
    batches = list(loader)
    assert len(batches) == len(loader) == 2
    assert loader.pin_memory
    assert loader.drop_last
    assert isinstance(loader.sampler, torch.utils.data.RandomSampler)
    indexes, images, targets = batches[0]
    assert [v.shape for v in images] == [(5, 3, 32, 32)] * 2
    assert torch.equal(targets, (indexes >= 6).long())


def test_batch_larger_than_the_dataset(folder, views):
    dataset = prepare_datasets("custom", views, folder)
    assert len(prepare_dataloader(dataset, batch_size=64)) == 0  # as solo-learn's
    with pytest.raises(ConfigError, match=r"batch_size=64 is larger than .* \(12 images\)"):
        require_full_batch(dataset, 64)


def test_indexed_class_is_made_once():
    assert dataset_with_index(DigitsDataset) is dataset_with_index(DigitsDataset)
