# SPDX-License-Identifier: MIT
"""`solo.load_pretrained` opens what exports write, wherever it lies, and files say what they
hold."""

import json
import os
import shutil
import stat

import pytest
import torch
from PIL import Image
from safetensors import safe_open

import solo
from solo.checkpoints.described import class_names, description
from solo.checkpoints.runs import load_run
from solo.data.classification_dataloader import folder_transform
from solo.errors import CheckpointError
from solo.programs.pretrain import pretrain
from sparse_ext.export.__main__ import main
from tests.data.pictures import textured
from tests.programs.tiny import PRETRAIN, config, run_of

FILES = ("dense", "packed", "csr", "onnx")
STATISTICS = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two classes of ten images."""
    folder = tmp_path_factory.mktemp("images")
    for name in ("ant", "bee"):
        (folder / name).mkdir()
        for index in range(10):
            Image.fromarray(textured(24, 30, seed=index)).save(folder / name / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    """Folder of a sparse run on them, at 20 pixels."""
    before, folder = os.getcwd(), tmp_path_factory.mktemp("run")
    os.chdir(folder)
    try:
        views = [{**PRETRAIN["augmentations"][0], "crop_size": 20, **STATISTICS}]
        data = {"dataset": "custom", "train_path": str(images), "num_workers": 0}
        sparse = {"name": "gmp", "final": 0.5, "ramp_end": 0.5, "update_period": 1}
        pretrain(config(PRETRAIN, data=data, augmentations=views, sparse=sparse, max_epochs=4,
                        optimizer__batch_size=8))  # fmt: skip
    finally:
        os.chdir(before)
    return run_of(folder)[0]


def exported(form, run, folder):
    if form == "onnx":
        pytest.importorskip("onnxruntime")
    suffix = "onnx" if form == "onnx" else "safetensors"
    path = folder / "elsewhere" / f"encoder.{suffix}"
    assert main([form, str(run), "--out", str(folder / f"encoder.{suffix}")]) == 0
    path.parent.mkdir()
    shutil.move(folder / f"encoder.{suffix}", path)
    return path


@pytest.mark.parametrize("form", FILES)
def test_a_file_gives_the_features_of_its_run(form, run, tmp_path):
    x = torch.randn(3, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    reopened = solo.load_pretrained(exported(form, run, tmp_path))
    assert not reopened.training
    with torch.no_grad():
        wanted = solo.load_pretrained(run)(x)
        torch.testing.assert_close(reopened(x), wanted, rtol=1e-4, atol=1e-5)
    assert float((wanted != 0).float().mean()) > 0.1  # the features say something


@pytest.mark.parametrize("form", FILES)
def test_a_file_shows_images_as_its_run(form, run, tmp_path):
    preprocess = solo.load_pretrained(exported(form, run, tmp_path)).preprocess
    picture = Image.fromarray(textured(50, 40, seed=1))
    assert torch.equal(preprocess(picture), folder_transform(load_run(run)[1])(picture))
    assert preprocess(picture).shape == (3, 20, 20)
    assert (preprocess.size, preprocess.mean, preprocess.std) == (
        20, tuple(STATISTICS["mean"]), tuple(STATISTICS["std"]),
    )  # fmt: skip


@pytest.mark.parametrize("form", ["dense", "packed", "csr"])
def test_a_file_says_what_it_wants(form, run, tmp_path):
    path = exported(form, run, tmp_path)
    with safe_open(path, "pt") as file:
        about = file.metadata()
    assert json.loads(about["image_size"]) == 20
    assert json.loads(about["mean"]) == STATISTICS["mean"]
    assert json.loads(about["classes"]) == ["ant", "bee"]
    assert "train_path" not in about["solo.args"]


def test_onnx_says_it_too(run, tmp_path):
    about = solo.load_pretrained(exported("onnx", run, tmp_path)).about
    assert json.loads(about["std"]) == STATISTICS["std"]
    assert json.loads(about["classes"]) == ["ant", "bee"]


def test_others_may_read_a_file(run, tmp_path):
    before = os.umask(0o022)
    try:
        path = exported("dense", run, tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_the_preprocessing_of_a_run_takes_paths(run, images):
    preprocess = solo.load_pretrained(run).preprocess
    path = images / "ant" / "3.png"
    assert torch.equal(preprocess(path), preprocess(Image.open(path)))


def test_without_a_description_and_args(run, tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match=r"no args\.json beside it"):
        solo.load_pretrained(tmp_path / "foreign.safetensors")


def test_a_damaged_onnx_file(tmp_path):
    pytest.importorskip("onnxruntime")
    (tmp_path / "broken.onnx").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="ONNX Runtime cannot read it"):
        solo.load_pretrained(tmp_path / "broken.onnx")


@pytest.mark.unit
def test_classes_are_known_while_their_folders_are(tmp_path):
    args = {"data": {"dataset": "custom", "train_path": str(tmp_path), "num_classes": 2}}
    assert class_names(args) == []
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
    assert class_names(args) == ["a", "b"]
    (tmp_path / "c").mkdir()  # the labels of the run are others
    assert class_names(args) == []
    assert "classes" not in description(args)
