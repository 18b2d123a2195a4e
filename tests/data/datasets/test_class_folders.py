# SPDX-License-Identifier: MIT
"""One rule for folders of classes, and the same classes in both splits, in every format."""

import io
import tarfile
from argparse import Namespace

import h5py
import numpy as np
import pytest
from PIL import Image

from scripts.utils.convert_imgfolder_to_h5 import convert_imgfolder_to_h5
from scripts.utils.convert_imgfolder_to_shards import convert_imgfolder_to_shards
from solo.args.linear import parse_cfg as parse_linear
from solo.args.pretrain import parse_cfg
from solo.data.classification_dataloader import prepare_datasets
from solo.data.datasets.folders import class_files, class_folders
from solo.data.h5_dataset import H5Dataset
from solo.data.shards.dataset import ShardDataset
from solo.errors import ConfigError, DataError
from solo.programs.evaluation import evaluation_loaders
from solo.programs.linear import build_data as linear_data
from solo.programs.pretrain import build_data
from tests.programs.tiny import LINEAR, PRETRAIN, config

FORMATS = ["image_folder", "resident", "dali"]


def image(path, level=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), level, np.uint8)).save(path)


def folder(root, classes, n=4):
    for name in classes:
        for i in range(n):
            image(root / name / f"{i}.png")
    return root


@pytest.fixture
def awkward(tmp_path):
    """Two classes; hidden folders and files; images below a class."""
    root = folder(tmp_path / "images", "ab")
    for name in (".ipynb_checkpoints", "a/.hidden"):
        image(root / name / "x.png")
    (root / "a" / "._0.png").write_bytes(b"no image")
    image(root / "b" / "deep" / "er" / "5.png")
    return root


def test_hidden_things_do_not_count_and_depth_does(awkward):
    assert class_folders(awkward) == ["a", "b"]
    names = [f[len(str(awkward)) + 1 :] for c in "ab" for f in class_files(awkward, c)]
    assert names == [*(f"a/{i}.png" for i in range(4)), *(f"b/{i}.png" for i in range(4)), "b/deep/er/5.png"]  # fmt: skip  # noqa: E501
    cfg = config(PRETRAIN, data={"dataset": "custom", "train_path": str(awkward)})
    assert parse_cfg(cfg).data.num_classes == 2
    train, val = prepare_datasets("custom", None, None, awkward, awkward)
    assert train.classes == val.classes == ["a", "b"]
    assert [label for _, label in train.samples] == [0] * 4 + [1] * 5
    pytest.importorskip("nvidia.dali")
    from solo.data.dali.pipelines import labelled_files

    assert labelled_files(awkward, "key") == tuple(map(list, zip(*train.samples, strict=True)))


def test_tiny_imagenet_as_it_is_unpacked(tmp_path):
    for name in ("n01", "n02"):
        image(tmp_path / "train" / name / "images" / f"{name}_0.JPEG")
    lines = []
    for i, name in enumerate(("n02", "n01", "n02")):
        image(tmp_path / "val" / "images" / f"val_{i}.JPEG")
        lines.append(f"val_{i}.JPEG\t{name}\t0\t0\t62\t62")
    (tmp_path / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    train, val = prepare_datasets("custom", None, None, tmp_path / "train", tmp_path / "val")
    assert train.classes == val.classes == ["n01", "n02"]
    found = sorted((path.rpartition("/")[2], label) for path, label in val.samples)
    assert found == [("val_0.JPEG", 1), ("val_1.JPEG", 0), ("val_2.JPEG", 1)]


@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize(
    ("classes", "odd"), [("a", "in only one of them: b"), ("abc", "in only one of them: c")]
)
def test_other_classes_in_validation_are_refused(tmp_path, data_format, classes, odd):
    if data_format == "dali":
        pytest.importorskip("nvidia.dali")
    train, val = folder(tmp_path / "train", "ab", 16), folder(tmp_path / "val", classes)
    data = {"dataset": "custom", "num_workers": 0, "train_path": str(train), "val_path": str(val)}
    with pytest.raises(DataError, match=odd):
        build_data(parse_cfg(config(PRETRAIN, data={**data, "format": data_format})))
    if data_format != "resident":
        cfg = config(LINEAR, data={**data, "format": data_format}, dali={"device": "cpu"})
        with pytest.raises(DataError, match=odd):
            linear_data(parse_linear(cfg))
    arguments = Namespace(
        dataset="custom", train_data_path=train, val_data_path=val, data_fraction=-1,
        data_format="image_folder", no_labels=False, batch_size=4, num_workers=0,
        pretrained_checkpoint_dir=str(tmp_path),
    )  # fmt: skip
    with pytest.raises(DataError, match=odd):
        evaluation_loaders(arguments)  # of kNN and UMAP


@pytest.mark.parametrize("data_format", ["image_folder", "resident"])
def test_too_few_images_for_several_processes(tmp_path, data_format):
    root = folder(tmp_path / "train", "ab", 10)
    data = {"dataset": "custom", "num_workers": 0, "train_path": str(root), "format": data_format}
    options = {"data": data, "devices": [0, 1]}
    with pytest.raises(ConfigError, match=r"batch_size=16 .*20 images for 2 processes"):
        build_data(parse_cfg(config(PRETRAIN, **options)))
    if data_format == "image_folder":
        data["val_path"] = str(root)
        with pytest.raises(ConfigError, match=r"batch_size=16 .*20 images for 2 processes"):
            linear_data(parse_linear(config(LINEAR, **options)))
    options["optimizer__batch_size"] = 10
    build_data(parse_cfg(config(PRETRAIN, **options)))


def test_converters_follow_the_rule(awkward, tmp_path):
    image(awkward / "b" / "deep_er" / "5.png")  # has the same name in H5 as deep/er/5.png
    expected = prepare_datasets("custom", None, None, awkward, awkward)[0]
    labels = sorted(label for _, label in expected.samples)
    assert labels == [0] * 4 + [1] * 6
    convert_imgfolder_to_h5(awkward, tmp_path / "x.h5")
    convert_imgfolder_to_shards(awkward, tmp_path / "shards")
    for found in (H5Dataset("custom", tmp_path / "x.h5"), ShardDataset(tmp_path / "shards")):
        assert found.classes == ["a", "b"]
        assert sorted(found[i][1] for i in range(len(found))) == labels


def test_files_of_other_converters_follow_the_rule(awkward, tmp_path):
    """An H5 file and a tar that hold the folder as it is, hidden things included."""
    with h5py.File(tmp_path / "x.h5", "w") as file, tarfile.open(tmp_path / "x.tar", "w") as tar:
        for path in sorted(awkward.rglob("*.png")):
            name = str(path.relative_to(awkward))
            file[name] = np.fromfile(path, dtype=np.uint8)
            tar.add(path, f"./{name}")
            label = io.BytesIO(b"0" if name.startswith("a/") else b"1")
            member = tarfile.TarInfo(f"./{name.removesuffix('.png')}.cls")
            member.size = 1
            tar.addfile(member, label)
    h5, shards = H5Dataset("custom", tmp_path / "x.h5"), ShardDataset(tmp_path / "x.tar")
    assert h5.classes == ["a", "b"]
    for found in (h5, shards, H5Dataset("custom", tmp_path / "x.h5")):  # the last from its index
        assert sorted(found[i][1] for i in range(len(found))) == [0] * 4 + [1] * 5


def test_tiny_imagenet_is_converted_with_its_classes(tmp_path):
    lines = []
    for i, name in enumerate(("n02", "n01", "n02")):
        image(tmp_path / "val" / "images" / f"val_{i}.JPEG")
        lines.append(f"val_{i}.JPEG\t{name}\t0\t0\t62\t62")
    (tmp_path / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    convert_imgfolder_to_h5(tmp_path / "val", tmp_path / "val.h5")
    convert_imgfolder_to_shards(tmp_path / "val", tmp_path / "shards")
    for found in (H5Dataset("custom", tmp_path / "val.h5"), ShardDataset(tmp_path / "shards")):
        assert found.classes == ["n01", "n02"]
        assert sorted(found[i][1] for i in range(3)) == [0, 1, 1]
