# SPDX-License-Identifier: MIT
"""Keys of `data` in main_linear and validation: they act in every format, or are refused."""

from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image

from scripts.utils.convert_imgfolder_to_h5 import convert_imgfolder_to_h5
from scripts.utils.convert_imgfolder_to_shards import convert_imgfolder_to_shards
from solo.args.linear import parse_cfg
from solo.args.pretrain import parse_cfg as parse_pretrain
from solo.data.datasets.images import ReadError
from solo.data.views.device_normalise import NormalisedOnDevice
from solo.errors import ConfigError
from solo.programs import evaluation
from solo.programs.linear import build_data, linear
from solo.programs.pretrain import validation_loader
from tests.programs.tiny import LINEAR, PRETRAIN, config

FORMATS = ["image_folder", "h5", "webdataset", "dali"]
# H5 files are for data sets whose classes are known by name; imagenet100 takes any
DATASETS = {"h5": "imagenet100"}


@pytest.fixture
def source(tmp_path):
    """Three classes of 8 and 4 images; two broken files in each split."""
    rng = np.random.default_rng(0)
    for split, n in (("train", 8), ("val", 4)):
        for label in "abc":
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            for i in range(n):
                Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(
                    folder / f"{i}.png"
                )
        whole = (tmp_path / split / "a" / "1.png").read_bytes()
        (tmp_path / split / "a" / "1.png").write_bytes(whole[: len(whole) // 2])
        (tmp_path / split / "b" / "2.png").write_text("text")
    return tmp_path


def given(source, kind, **more):
    if kind == "dali":
        pytest.importorskip("nvidia.dali")
    paths = {}
    for split in ("train", "val"):
        path = source / split
        if kind == "h5":
            path = source / f"{split}.h5"
            convert_imgfolder_to_h5(source / split, path)
        elif kind == "webdataset":
            path = source / f"{split}-shards"
            convert_imgfolder_to_shards(source / split, path, shard_size=5)
        paths[f"{split}_path"] = str(path)
    look = {"crop_size": 24}
    data = {"dataset": DATASETS.get(kind, "custom"), "format": kind, "num_workers": 1, **paths}
    return {**data, "augmentations": look, **more}


def loaders(source, kind, **more):
    cfg = config(LINEAR, data=given(source, kind, **more), dali={"device": "cpu"})
    cfg.optimizer.batch_size = 2
    made = build_data(parse_cfg(cfg))
    if isinstance(made, tuple):
        return made
    made.trainer = Namespace(local_rank=0, global_rank=0, world_size=1, current_epoch=0)
    made.setup()
    return made.train_dataloader(), made.val_dataloader()


def labels(loader):
    return torch.cat([targets for _, targets in loader]).tolist()


@pytest.mark.parametrize("kind", FORMATS)
def test_broken_files_of_both_splits_are_left_out_and_counted(source, kind):
    with pytest.warns(UserWarning, match="are broken") as caught:
        train, val = loaders(source, kind, skip_unreadable=True)
    seen = labels(train), labels(val)
    said = [str(warning.message) for warning in caught]
    assert any("data.train_path: 2 of 24 images" in text for text in said)
    assert any("data.val_path: 2 of 12 images" in text and "left out" in text for text in said)
    assert sorted(seen[0]) == [0] * 7 + [1] * 7 + [2] * 8
    assert sorted(seen[1]) == [0] * 3 + [1] * 3 + [2] * 4


def test_broken_validation_files_of_a_pretraining_are_left_out(source):
    data = {**given(source, "image_folder"), "skip_unreadable": True}
    del data["augmentations"]
    with pytest.warns(UserWarning, match=r"data\.val_path: 2 of 12 images"):
        loader = validation_loader(parse_pretrain(config(PRETRAIN, data=data)))
    assert len(labels(loader)) == 10


def test_a_run_names_the_way_out(source, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    cfg = config(LINEAR, data=given(source, "image_folder"), limit_train_batches=1.0)
    monkeypatch.setattr("solo.programs.linear.load_backbone", lambda cfg: _fresh())
    with pytest.raises(ReadError, match=r"Cannot read .*data\.skip_unreadable=True"):
        linear(cfg)


def _fresh():
    from solo.backbones import build_encoder

    return Namespace(backbone=build_encoder(config(PRETRAIN)), figures={})


def test_knn_and_umap_leave_them_out(source, monkeypatch):
    monkeypatch.setattr(evaluation, "read_args", lambda folder: None)
    args = Namespace(
        dataset="custom", train_data_path=source / "train", val_data_path=source / "val",
        data_format="image_folder", data_fraction=-1, no_labels=False, batch_size=4,
        num_workers=0, pretrained_checkpoint_dir="x", skip_unreadable=True, image_size=24,
    )  # fmt: skip
    with pytest.warns(UserWarning, match=r"data\.val_path: 2 of 12"):
        train, val = evaluation.evaluation_loaders(args)
    assert (len(labels(train)), len(labels(val))) == (22, 10)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_fraction_of_the_classes(source, kind):
    options = {"fraction": 0.4, "fraction_of": "classes", "skip_unreadable": True}
    with pytest.warns(UserWarning, match="broken"):
        train, val = loaders(source, kind, **options)
    seen = labels(train)
    assert len(set(seen)) == 1
    assert len(seen) in (6, 8)  # 7 or 8 readable images in batches of two
    assert len(set(labels(val))) == 3


@pytest.mark.parametrize("kind", ["image_folder", "h5", "webdataset"])
def test_normalised_on_the_device_the_pictures_are_the_same(source, kind):
    """Two of three channels' statistics differ, so that a mix-up would show."""
    look = {"crop_size": 24, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
    options = {**given(source, kind, skip_unreadable=True), "augmentations": look}
    made = {}
    for augment in ("workers", "device"):
        cfg = config(LINEAR, data={**options, "augment": augment})
        cfg.optimizer.batch_size = 4
        torch.manual_seed(3)
        with pytest.warns(UserWarning, match="broken"):
            made[augment] = build_data(parse_cfg(cfg))
    assert isinstance(made["device"], NormalisedOnDevice)
    raw = next(iter(made["device"].train_dataloader()))
    assert raw[0].dtype == torch.uint8
    images, targets = made["device"].on_after_batch_transfer(raw, 0)
    expected = next(iter(made["workers"][0]))
    torch.testing.assert_close(images, expected[0], rtol=0, atol=1e-5)
    assert torch.equal(targets, expected[1])
    whole = next(iter(made["device"].val_dataloader()))
    assert made["device"].on_after_batch_transfer(whole, 0) is whole


def test_a_run_with_normalisation_on_the_device(pretrained, tmp_path, monkeypatch):
    """Digits: the same losses as with images finished by workers."""
    monkeypatch.chdir(tmp_path)
    losses = []
    for augment in ("workers", "device"):
        cfg = config(LINEAR, pretrained_feature_extractor=str(pretrained[1]), data__augment=augment)
        losses.append(float(linear(cfg).callback_metrics["train_loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_keys_without_effect_are_refused(source):
    with pytest.raises(ConfigError, match=r"data\.no_labels=True: a classifier"):
        parse_cfg(config(LINEAR, data={**given(source, "image_folder"), "no_labels": True}))
    for base, parse in ((LINEAR, parse_cfg), (PRETRAIN, parse_pretrain)):
        with pytest.raises(ConfigError, match=r"data\.resident_size .* no effect .*image_folder"):
            parse(config(base, data__resident_size=64))
    cfg = config(LINEAR, data={**given(source, "dali"), "augment": "device"})
    with pytest.raises(ConfigError, match=r"data\.augment=device is for image_folder"):
        parse_cfg(cfg)
    cfg = config(LINEAR, data__augment="device", auto_augment=True)
    with pytest.raises(ConfigError, match=r"auto_augment .*data\.augment=device"):
        build_data(parse_cfg(cfg))
