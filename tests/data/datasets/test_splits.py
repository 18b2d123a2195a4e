# SPDX-License-Identifier: MIT
"""A fraction of a data set: stratified, seeded, kept in a file, used again when a run goes on."""

import json
import os
from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.model_selection import train_test_split

from solo.data.classification_dataloader import prepare_data, prepare_datasets, prepare_transforms
from solo.data.datasets import splits
from solo.data.datasets.digits import DigitsDataset
from solo.errors import ConfigError, DataError
from solo.programs.linear import linear
from solo.programs.pretrain import pretrain
from tests.programs.tiny import LINEAR, PRETRAIN, config, run_of

pytestmark = pytest.mark.unit

LABELS = [i % 7 for i in range(70)] + [3] * 30


def test_a_split_is_stratified_and_solo_learns():
    split = splits.draw(100, LABELS, 0.5)
    kept, _ = train_test_split(np.arange(100), train_size=0.5, stratify=LABELS, random_state=42)
    assert split.indices == kept.tolist()
    counts = Counter(LABELS[i] for i in split.indices)
    assert counts == {label: 20 if label == 3 else 5 for label in range(7)}
    assert split.per_class == {str(label): count for label, count in sorted(counts.items())}
    assert splits.draw(100, LABELS, 0.5) == split


def test_the_file_is_read_as_it_was_written(tmp_path):
    split = splits.draw(100, LABELS, 0.3)
    assert splits.read(tmp_path) is None
    assert split.write(tmp_path) == tmp_path / "split.json"
    assert splits.read(tmp_path) == split
    content = json.loads((tmp_path / "split.json").read_text())
    assert (content["seed"], content["fraction"], content["total"]) == (42, 0.3, 100)
    unlabelled = splits.draw(10, None, 0.3)
    unlabelled.write(tmp_path)
    assert splits.read(tmp_path) == unlabelled


@pytest.mark.parametrize("content", ["{", "[]", '{"seed": 42}', None])
def test_a_damaged_file_is_named(tmp_path, content):
    if content is None:
        split = splits.draw(100, LABELS, 0.3)
        content = json.dumps({"seed": 42, **vars(split), "indices": [100]})
    (tmp_path / "split.json").write_text(content)
    with pytest.raises(DataError, match=r"split\.json: damaged"):
        splits.read(tmp_path)


def test_a_split_of_other_data_is_refused():
    split = splits.draw(100, LABELS, 0.5)
    split.require(100, LABELS, 0.5, "images")
    with pytest.raises(DataError, match="part of 100 images with other labels than the 90"):
        split.require(90, LABELS[:90], 0.5, "images")
    with pytest.raises(DataError, match="other labels"):
        split.require(100, LABELS[::-1], 0.5, "images")
    with pytest.raises(DataError, match=r"data\.fraction=0\.6"):
        split.require(100, LABELS, 0.6, "images")


def test_a_given_split_decides_the_images():
    T = prepare_transforms("digits")
    whole, _ = prepare_datasets("digits", *T)
    part, _ = prepare_datasets("digits", *T, data_fraction=0.5)
    labels = [int(whole[i][1]) for i in range(len(whole))]
    assert [int(part[i][1]) for i in range(len(part))] == [labels[i] for i in part.split.indices]
    other = splits.Split(0.5, "images", len(whole), part.split.checksum, {}, [3, 1, 2])
    three, _ = prepare_datasets("digits", *T, data_fraction=0.5, split=other)
    assert [int(three[i][1]) for i in range(3)] == [labels[3], labels[1], labels[2]]
    assert len(three) == 3
    assert not hasattr(whole, "split")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder, before = tmp_path_factory.mktemp("run"), os.getcwd()
    os.chdir(folder)
    try:
        pretrain(config(PRETRAIN))
    finally:
        os.chdir(before)
    return run_of(folder)


def test_a_run_leaves_its_split_and_takes_it_up_again(pretrained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {"data__fraction": 0.5, "finetune": True, "max_epochs": 1}
    linear(config(LINEAR, pretrained_feature_extractor=str(pretrained[1]), **options))
    folder, checkpoint = run_of(tmp_path, "linear")
    split = splits.read(folder)
    assert len(split.indices) == split.total // 2
    labels = DigitsDataset(train=True).targets
    for label, count in Counter(map(int, labels)).items():
        assert abs(split.per_class[str(label)] - count / 2) <= 1
    other = {**vars(split), "indices": split.indices[:64]}
    splits.Split(**other).write(folder)
    options |= {"resume_from_checkpoint": str(checkpoint), "max_epochs": 2}
    linear(config(LINEAR, pretrained_feature_extractor=str(pretrained[1]), **options))
    assert splits.read(folder).indices == split.indices[:64]
    whole = {"data__fraction": -1, "name": "whole"}
    linear(config(LINEAR, pretrained_feature_extractor=str(pretrained[1]), **whole))
    assert not (tmp_path / "trained_models/linear/1/split.json").exists()


# ---- images of another size, encoders of another data set ----


def folders(root, classes=2, each=24):
    from PIL import Image

    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in "abcdefg"[:classes]:
            (root / part / name).mkdir(parents=True)
            for i in range(each):
                pixels = rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i}.png")
    return {f"data__{part}_path": str(root / part) for part in ("train", "val")}


@pytest.mark.parametrize("dataset", ["cifar10", "stl10", "custom", "digits"])
def test_images_of_another_size(dataset):
    from PIL import Image

    picture = Image.fromarray(np.zeros((32, 32, 3), np.uint8))
    for size in (20, 48):
        for transform in prepare_transforms(dataset, size):
            assert transform(picture).shape == (3, size, size)


def test_an_encoder_keeps_its_stem_on_another_data_set(pretrained, tmp_path, monkeypatch):
    """digits has a 3x3 stem, a custom data set a 7x7 one; images at the encoder's own size."""
    monkeypatch.chdir(tmp_path)
    paths = folders(tmp_path / "images")
    options = {"data__dataset": "custom", "data__image_size": 32, **paths}
    options |= {"data__format": "image_folder"}
    trainer = linear(config(LINEAR, pretrained_feature_extractor=str(pretrained[1]), **options))
    assert trainer.lightning_module.backbone.conv1.kernel_size == (3, 3)
    images, _ = next(iter(trainer.train_dataloader))
    assert images.shape[2:] == (32, 32)
    assert torch.isfinite(trainer.callback_metrics["val_loss"])


def test_sizes_that_cannot_be(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.image_size"):
        linear(config(LINEAR, pretrained_feature_extractor="x.ckpt", data__image_size=0))


def test_loaders_take_the_size():
    train, val = prepare_data("digits", batch_size=8, num_workers=0, image_size=16)
    assert next(iter(train))[0].shape == next(iter(val))[0].shape == (8, 3, 16, 16)
