# SPDX-License-Identifier: MIT
"""main_knn and main_umap on a finished run."""

import json
import shutil
from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image

import main_knn
from solo.errors import CheckpointError, ConfigError, SoloError
from solo.files.results import read_results
from solo.programs import umap as umap_program
from solo.programs.evaluation import Features, device_of, evaluation_loaders, load_method
from solo.programs.knn import knn


@pytest.fixture
def images(tmp_path):
    """Two classes of plain colours, 6 for training and 2 for validation each."""
    for split, count in (("train", 6), ("val", 2)):
        for name, base in (("dark", 20), ("light", 220)):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (32, 32), (base + index,) * 3).save(folder / f"{index}.png")
    return tmp_path


def arguments(run, images, **kwargs):
    defaults = {
        "dataset": "custom",
        "train_data_path": images / "train",
        "val_data_path": images / "val",
        "data_format": "image_folder",
        "data_fraction": -1.0,
        "no_labels": False,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "pretrained_checkpoint_dir": str(run),
        "batch_size": 5,
        "num_workers": 0,
        "eval_encoder": "online",
        "device": "cpu",
        "k": [3],
        "temperature": [0.1],
        "distance_function": ["cosine"],
        "feature_type": ["backbone"],
    }
    return Namespace(**{**defaults, **kwargs})


def test_knn_tries_all_combinations(pretrained, images, capsys):
    args = arguments(
        pretrained[0],
        images,
        k=[1, 3],
        temperature=[0.1, 0.2],
        distance_function=["cosine", "euclidean"],
        feature_type=["backbone", "projector"],
    )
    results = knn(args)
    assert len(results) == 2 * 2 * (2 + 1)
    assert capsys.readouterr().out.count("Result: acc@1=") == len(results)
    euclidean = [r for r in results if r["distance_function"] == "euclidean"]
    assert {r["temperature"] for r in euclidean} == {None}
    assert all(r["acc1"] == 100 for r in euclidean if r["feature_type"] == "backbone")


def test_features_are_those_of_the_checkpoint(pretrained, images):
    """All images, in order, not augmented, normalised by --mean and --std."""
    model = load_method(pretrained[0])
    train, _ = evaluation_loaders(arguments(pretrained[0], images))
    feats, z, labels = main_knn.extract_features(train, Features(model))
    assert labels.tolist() == [0] * 6 + [1] * 6
    assert z.shape == (12, 8)
    assert not z.requires_grad
    grey = (torch.full((1, 3, 32, 32), 222 / 255) - 0.5) / 0.5  # the third light image
    with torch.no_grad():
        torch.testing.assert_close(feats[8:9], model.backbone(grey), rtol=1e-4, atol=1e-5)
    saved = torch.load(pretrained[1])["state_dict"]
    assert torch.equal(model.backbone.conv1.weight, saved["backbone.conv1.weight"])


def test_momentum_encoder(pretrained, images):
    model = load_method(pretrained[0], "momentum")
    saved = torch.load(pretrained[1])["state_dict"]
    key = "momentum_backbone.layer4.1.conv2.weight"
    assert torch.equal(model.state_dict()[key], saved[key])
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            Features(model, "momentum")(x)["feats"], model.momentum_backbone(x)
        )
    assert knn(arguments(pretrained[0], images, eval_encoder="momentum"))


def test_run_knn_against_brute_force():
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(40, 5)), generator.integers(0, 7, 40)
    test_x, test_y = generator.normal(size=(9, 5)), generator.integers(0, 7, 9)
    hits = []
    for point, label in zip(test_x, test_y, strict=True):
        distance = np.sqrt(((x - point) ** 2).sum(1))
        votes = np.zeros(7)
        for index in np.argsort(distance)[:4]:
            votes[y[index]] += 1 / (distance[index] + 1e-5)
        hits.append(votes.argmax() == label)
    tensors = [torch.tensor(a) for a in (x, y, test_x, test_y)]
    acc1, acc5 = main_knn.run_knn(*tensors, k=4, T=None, distance_fx="euclidean")
    assert acc1 == pytest.approx(100 * np.mean(hits))
    assert acc5 >= acc1


def test_umap_writes_a_picture_per_split(pretrained, images, cwd, monkeypatch):
    drawn = []

    class Draw:
        def plot(self, device, model, loader, paths, title):
            model(torch.zeros(1, 3, 32, 32))["feats"]
            drawn.append(([p.name for p in paths], len(loader.dataset), title))
            assert {p.parent for p in paths} == {pretrained[0]}

    monkeypatch.setattr(umap_program, "OfflineUMAP", Draw)
    umap_program.umap(arguments(pretrained[0], images))
    names = [
        [f"custom_{split}_umap.{kind}" for kind in ("pdf", "png")] for split in ("train", "val")
    ]
    assert [d[:2] for d in drawn] == [(names[0], 12), (names[1], 4)]
    assert drawn[1][2].startswith("online encoder of ")
    assert drawn[1][2].endswith(": custom, val")
    assert read_results(pretrained[0])["umap"][0]["files"] == [*names[0], *names[1]]
    flat = images / "train" / "dark"
    umap_program.umap(
        arguments(pretrained[0], images, no_labels=True, train_data_path=flat, val_data_path=None)
    )
    assert drawn[2][:2] == (names[0], 6)


def broken(run, tmp_path, kind):
    folder = tmp_path / "run"
    if kind == "absent":
        return folder
    shutil.copytree(run, folder)
    (checkpoint,) = folder.glob("*.ckpt")
    args = json.loads((folder / "args.json").read_text())
    if kind == "no args":
        (folder / "args.json").unlink()
    elif kind == "bad args":
        (folder / "args.json").write_text("{")
    elif kind == "no checkpoint":
        checkpoint.unlink()
    elif kind == "truncated":
        checkpoint.write_bytes(checkpoint.read_bytes()[:999])
    elif kind == "other width":
        args["backbone"]["kwargs"]["width"] = 3
    elif kind == "other method":
        args["method"] = "bylo"
    if kind.startswith("other"):
        (folder / "args.json").write_text(json.dumps(args))
    return folder


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("absent", "there is no folder"),
        ("no args", "no args.json"),
        ("bad args", "args.json"),
        ("no checkpoint", "no .ckpt file"),
        ("truncated", "truncated"),
        ("other width", "-ep=0.ckpt does not fit the encoder.\n  "),
        ("other method", "'bylo' is not a pretraining method"),
    ],
)
def test_bad_runs(pretrained, images, tmp_path, kind, message):
    folder = broken(pretrained[0], tmp_path, kind)
    with pytest.raises(CheckpointError) as error:
        knn(arguments(folder, images))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"no_labels": True}, "needs labels"),
        ({"device": "cuda:77"}, "--device cuda:77 cannot be used"),
        ({"device": "gpu"}, "--device gpu cannot be used"),
        ({"train_data_path": "absent"}, "absent"),
        ({"val_data_path": None}, "--val_data_path is missing"),
    ],
)
def test_bad_arguments(pretrained, images, change, message):
    with pytest.raises(SoloError) as error:
        knn(arguments(pretrained[0], images, **change))
    assert message in str(error.value)


def test_a_projector_that_is_not_in_the_file(pretrained, images, tmp_path):
    folder = broken(pretrained[0], tmp_path, "copy")
    (checkpoint,) = folder.glob("*.ckpt")
    content = torch.load(checkpoint)
    state = content["state_dict"]
    content["state_dict"] = {k: v for k, v in state.items() if not k.startswith("projector")}
    torch.save(content, checkpoint)
    assert knn(arguments(folder, images))
    with pytest.raises(CheckpointError, match="--feature_type backbone"):
        knn(arguments(folder, images, feature_type=["projector"]))


def test_automatic_device():
    assert device_of("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ConfigError):
        device_of("tpu9")
