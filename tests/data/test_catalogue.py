# SPDX-License-Identifier: MIT
"""Records of data sets: what solo-learn knows, and data sets from elsewhere."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from solo.args.knn import parse_args_knn
from solo.data.catalogue import DATASETS, DatasetInfo, info_of, register_dataset
from solo.data.classification_dataloader import prepare_transforms
from solo.data.shown import input_size
from solo.errors import ConfigError
from solo.programs.knn import knn
from solo.programs.linear import linear
from solo.programs.pretrain import pretrain
from tests.programs.tiny import LINEAR, PRETRAIN, config
from tests.registries import registries_restored

PAGE = Path(__file__).parents[2] / "docs" / "adding_a_dataset.md"


@pytest.fixture
def registry():
    """Whatever a test registers is gone afterwards."""
    with registries_restored():
        yield DATASETS


def blobs(folder):
    """Dark and light squares of 32 pixels."""
    folder.mkdir()
    noise = np.random.default_rng(0)
    for split, n in (("train", 40), ("val", 12)):
        labels = np.arange(n) % 2
        images = noise.integers(0, 60, (n, 32, 32, 3)) + 150 * labels[:, None, None, None]
        np.savez(folder / f"{split}.npz", images=images.astype(np.uint8), labels=labels)
    return folder


def test_a_data_set_from_elsewhere_goes_through_every_program(registry, tmp_path, monkeypatch):
    """The module of docs/adding_a_dataset.md, out of a folder of its own."""
    monkeypatch.chdir(tmp_path)
    module = re.search(r"<!-- my_blobs.py -->\n```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    (tmp_path / "my_blobs.py").write_text(module.group(1))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_blobs", raising=False)
    path = str(blobs(tmp_path / "blobs"))
    data = {"dataset": "blobs", "train_path": path, "val_path": path, "num_workers": 0}
    options = {"data": data, "imports": ["my_blobs"], "limit_val_batches": 1.0}
    for form in ("resident", "image_folder"):
        form = {**options, "data": {**data, "format": form}, "checkpoint__dir": form}
        trainer = pretrain(config(PRETRAIN, **form))
        assert trainer.model.num_classes == 2
        assert trainer.model.backbone.conv1.kernel_size == (3, 3)
    run = tmp_path / "image_folder" / "mocov2plus" / "0"
    del registry["blobs"]
    monkeypatch.delitem(sys.modules, "my_blobs")
    given = {"pretrained_feature_extractor": str(run), "max_epochs": 1}
    tested = linear(config(LINEAR, **options, **given, limit_train_batches=1.0))
    assert tested.model.classifier.out_features == 2
    assert [len(labels) for _, labels in tested.val_dataloaders] == [12]
    del registry["blobs"]
    monkeypatch.delitem(sys.modules, "my_blobs")
    argv = ["main_knn.py", "--dataset", "blobs", "--imports", "my_blobs"]
    argv += ["--train_data_path", path, "--val_data_path", path, "--num_workers", "0", "--k", "1"]
    monkeypatch.setattr(sys, "argv", [*argv, "--pretrained_checkpoint_dir", str(run)])
    (found,) = knn(parse_args_knn())
    assert found["acc1"] == 100


def test_a_record_says_what_evaluation_shows(registry):
    register_dataset(DatasetInfo("pets", num_classes=37, side=64, mean=[0.4] * 3, std=[0.2] * 3))
    train, val = prepare_transforms("pets")
    image = Image.fromarray(np.full((64, 64, 3), 255, np.uint8))
    torch.testing.assert_close(val(image), torch.full((3, 64, 64), 3.0))
    assert train(image).shape == (3, 64, 64)
    assert prepare_transforms("pets", 32)[1](image).shape == (3, 32, 32)
    assert input_size({"data": {"dataset": "pets"}}) == 64
    assert info_of("pets").formats == info_of("imagenet").formats


def test_mistakes(registry):
    with pytest.raises(ConfigError, match=r"'cifar1O' is not supported.*Did you mean 'cifar10'"):
        info_of("cifar1O")
    with pytest.raises(ConfigError, match="give both mean and std"):
        DatasetInfo("half", mean=(0.5,))
    with pytest.raises(ConfigError, match="a data set called 'digits' already"):
        register_dataset(DatasetInfo("digits"))
