# SPDX-License-Identifier: MIT
"""solo-embed: one row per image, equal to what the encoder makes of it."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

import solo
from solo.programs.embed import images_of, main
from tests.data.pictures import textured


@pytest.fixture
def folder(tmp_path):
    """Five images in two classes, one of them grey and one in a folder of its own."""
    for number, name in enumerate(["a/0.png", "a/1.jpg", "b/2.png", "b/deep/3.png", "b/4.png"]):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(textured(30 + number, 40, seed=number))
        (image.convert("L") if number == 2 else image).save(path)
    return tmp_path / "images"


NAMES = ["a/0.png", "a/1.jpg", "b/2.png", "b/4.png", "b/deep/3.png"]
LABELS = ["a", "a", "b", "b", "b"]


def wanted(run, folder, encoder="online"):
    """Image by image."""
    net = solo.load_pretrained(run, encoder)
    with torch.no_grad():
        rows = [net(net.preprocess(Image.open(folder / name))[None]) for name in NAMES]
    return torch.cat(rows).numpy()


@pytest.mark.parametrize("encoder", ["online", "momentum"])
def test_features_paths_and_labels(pretrained, folder, tmp_path, encoder, capsys):
    out = tmp_path / "out" / "features.npy"
    options = ["--batch_size", "2", "--encoder", encoder]
    assert main([str(pretrained[0]), str(folder), "-o", str(out), *options]) == 0
    np.testing.assert_allclose(np.load(out), wanted(pretrained[0], folder, encoder), atol=1e-5)
    with open(out.with_suffix(".csv"), newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [["path", "label"], *map(list, zip(NAMES, LABELS, strict=True))]
    assert "5 images" in capsys.readouterr().out


def test_one_file(pretrained, folder, tmp_path):
    assert main([str(pretrained[1]), str(folder), "-o", str(tmp_path / "f.npz")]) == 0
    found = np.load(tmp_path / "f.npz")
    assert list(found["paths"]) == NAMES
    assert list(found["labels"]) == LABELS
    np.testing.assert_allclose(found["features"], wanted(pretrained[0], folder), atol=1e-5)


def test_parquet(pretrained, folder, tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    assert main([str(pretrained[0]), str(folder), "-o", str(tmp_path / "f.parquet")]) == 0
    table = pandas.read_parquet(tmp_path / "f.parquet")
    assert list(table.path) == NAMES
    np.testing.assert_allclose(np.stack(table.feature), wanted(pretrained[0], folder), atol=1e-5)


def test_parquet_without_its_packages(pretrained, folder, tmp_path, monkeypatch, capsys):
    import builtins

    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.partition(".")[0] in ("pandas", "pyarrow"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert main([str(pretrained[0]), str(folder), "-o", str(tmp_path / "f.parquet")]) == 2
    assert "pip install pandas pyarrow" in capsys.readouterr().err
    assert not (tmp_path / "f.parquet").exists()


def test_broken_files(pretrained, folder, tmp_path, capsys):
    (folder / "a" / "0.png").write_bytes(b"nothing")
    out = tmp_path / "f.npy"
    assert main([str(pretrained[0]), str(folder), "-o", str(out)]) == 2
    assert "a/0.png" in capsys.readouterr().err
    assert not out.exists()
    assert main([str(pretrained[0]), str(folder), "-o", str(out), "--skip_unreadable"]) == 0
    assert len(np.load(out)) == 4
    assert "left out" in capsys.readouterr().err


@pytest.mark.unit
@pytest.mark.parametrize(
    ("file", "label"),
    [
        ("0.png", ""),
        ("train/n01/images/0.png", "n01"),
        ("n01/x/0.png", "n01"),
        ("Val/b/0.png", "b"),
    ],
)
def test_labels(tmp_path, file, label):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (2, 2)).save(tmp_path / file)
    assert images_of(tmp_path) == ([tmp_path / file], [label])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN", "nowhere"], "FOLDER: there is no folder 'nowhere'"),
        (["RUN", "images", "-o", "f.txt"], ".npy, .npz, .parquet"),
        (["nowhere/0", "images"], "there is no such checkpoint"),
    ],
)
def test_mistakes(pretrained, folder, monkeypatch, arguments, message, capsys):
    monkeypatch.chdir(folder.parent)
    assert main([str(pretrained[0]) if a == "RUN" else a for a in arguments]) == 2
    assert message in capsys.readouterr().err


def test_no_images(pretrained, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main([str(pretrained[0]), str(tmp_path / "empty")]) == 2
    assert "there are no images" in capsys.readouterr().err
