# SPDX-License-Identifier: MIT
"""Shipped encoders: packed from runs, opened by their name, and held to their figures."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

import solo
from solo.backbones import build_encoder
from solo.errors import CheckpointError, ConfigError, DataError

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[2]


def script(name):
    spec = importlib.util.spec_from_file_location(f"zoo_{name}", ROOT / "zoo" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


encoders, verify = script("encoders"), script("verify")
ARGS = {
    "method": "lejepa",
    "backbone": {"name": "resnet18", "kwargs": {"width": 8}},
    "data": {"dataset": "digits", "train_path": "/home/me/images/train", "val_path": None},
    "checkpoint": {"dir": "/home/me/runs"},
}


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """A zoo of its own with the repository's manifest, no encoder yet."""
    folder = tmp_path / "zoo"
    folder.mkdir()
    text = (ROOT / "zoo" / "manifest.json").read_text()
    (folder / "manifest.json").write_text(encoders.with_encoders(text, []))
    monkeypatch.setenv("SOLO_ZOO", str(folder))
    return folder


@pytest.fixture
def runs(tmp_path):
    """A leaderboard's folder with one finished dense cell; the encoder's weights."""
    torch.manual_seed(0)
    net = build_encoder(OmegaConf.create(ARGS))
    run = tmp_path / "runs" / "dense-seed0" / "lejepa" / "0"
    run.mkdir(parents=True)
    (run / "args.json").write_text(json.dumps(ARGS))
    torch.save(
        {"state_dict": {f"backbone.{k}": v for k, v in net.state_dict().items()}}, run / "a.ckpt"
    )
    cell = {
        "method": "dense",
        "seed": 0,
        "linear_acc1": 80.0,
        "knn_acc1": 75.0,
        "date": "2026-11-28",
    }
    cell |= {"measured_sparsity": 0.0, "macs_effective": 10, "macs_dense": 10, "machine": "m"}
    cell |= {"torch": "2.14", "overrides": ["++seed=0"]}
    (run.parents[1] / "cell.json").write_text(json.dumps(cell))
    return tmp_path, net


def test_packed_it_opens_by_its_name_with_rounded_weights(zoo, runs, monkeypatch):
    folder, net = runs
    figures = {"linear_acc1": 79.9, "knn_acc1": 75.1}
    monkeypatch.setattr(encoders, "measured", lambda *_: figures)
    before = json.loads((zoo / "manifest.json").read_text())
    assert encoders.pack("digits", folder, zoo) == ["digits-lejepa-dense"]
    shipped = json.loads((zoo / "digits/digits-lejepa-dense/args.json").read_text())
    assert shipped["data"] == {**ARGS["data"], "train_path": "FOLDER/train"}
    assert shipped["checkpoint"]["dir"] == "trained_models"
    manifest = json.loads((zoo / "manifest.json").read_text())
    assert manifest["models"] == before["models"]
    (entry,) = manifest["encoders"]
    assert entry["linear_acc1"] == 79.9
    assert entry["command"].endswith("lejepa.yaml ++quality.enabled=False ++seed=0")
    opened = solo.load_pretrained("digits-lejepa-dense").state_dict()
    for key, value in net.state_dict().items():
        expected = value.half().float() if value.is_floating_point() else value
        assert torch.equal(opened[key], expected), key
    card = (zoo / "digits/digits-lejepa-dense/card.md").read_text()
    for text in ("79.90 %", "80.00 %", "CC BY 4.0", entry["command"], "**Seed**: 0"):
        assert text in card
    assert list(verify._encoders(manifest, zoo, set())) == []
    assert "Two networks" not in card
    encoders.pack("digits", folder, zoo)  # again: replaced, not added
    assert json.loads((zoo / "manifest.json").read_text())["encoders"] == [entry]


def test_what_is_wrong_with_an_encoder_is_named(zoo, runs, monkeypatch):
    monkeypatch.setattr(encoders, "measured", lambda *_: {"linear_acc1": 1.0, "knn_acc1": 1.0})
    encoders.pack("digits", runs[0], zoo)
    manifest = json.loads((zoo / "manifest.json").read_text())
    entry = manifest["encoders"][0]
    place = zoo / "digits" / entry["name"]

    def problems(seen=()):
        return "\n".join(verify._encoders(manifest, zoo, set(seen)))

    assert "listed twice" in problems([entry["name"]])
    (place / "card.md").unlink()
    assert "no card.md beside its checkpoint" in problems()
    with open(place / "encoder.safetensors", "ab") as file:
        file.write(b"x")
    assert "another sha256" in problems()
    with pytest.raises(CheckpointError, match="not the file that the manifest describes"):
        solo.load_pretrained(entry["name"])
    monkeypatch.setattr(verify, "LARGEST", 1000)
    assert "more than 1,000" in problems()
    del entry["seed"]
    assert "'seed' must be there, of type int" in problems()


def test_figures_that_are_not_confirmed_are_named(zoo, monkeypatch, capsys):
    entry = {"name": "digits-lejepa-cdg", "checkpoint": {"path": "e/encoder.safetensors"}}
    entry |= {"linear_acc1": 80.0, "knn_acc1": 70.0}
    monkeypatch.setattr(encoders, "measured", lambda *_: {"linear_acc1": 80.09, "knn_acc1": 70.2})
    found = encoders.differences([entry], zoo)
    assert found == ["digits-lejepa-cdg: knn_acc1 is 70.2, its card says 70.0"]


def test_the_card_of_two_networks_has_the_figures_of_both(zoo, runs, monkeypatch):
    folder, _ = runs
    file = folder / "runs/dense-seed0/cell.json"
    branch = {"dense_branch_linear_acc1": 76.667, "dense_branch_knn_acc1": 65.972}
    file.write_text(json.dumps({**json.loads(file.read_text()), **branch}))
    monkeypatch.setattr(encoders, "measured", lambda *_: {"linear_acc1": 60.0, "knn_acc1": 5.0})
    encoders.pack("digits", folder, zoo)
    card = (zoo / "digits/digits-lejepa-dense/card.md").read_text()
    assert "(`+gating.eval=dense`) had 76.67 % and 65.97 %, before rounding.\n- **File" in card


@pytest.fixture
def photographs(tmp_path):
    """An empty folder where the images of CIFAR-10 would be."""
    for part in ("train", "val"):
        (tmp_path / "images" / part).mkdir(parents=True)
    return tmp_path / "images"


def test_encoders_of_photographs_have_a_folder_and_a_licence_of_their_own(
    zoo, runs, photographs, monkeypatch
):
    asked = []
    monkeypatch.setitem(encoders.ENCODERS, "cifar10-simclr-dense", ("cifar", "dense-seed0"))
    monkeypatch.setattr(
        encoders,
        "evaluate",
        lambda board, path, own, encoder, values, arguments: (
            asked.append((board.title, values, arguments))
            or {"linear_acc1": 60.0, "knn_acc1": 55.0}
        ),
    )
    assert encoders.pack("cifar", runs[0], zoo, photographs) == ["cifar10-simclr-dense"]
    ((title, values, arguments),) = asked
    assert title == "CIFAR-10"
    assert f"data.train_path='{photographs / 'train'}'" in values
    assert arguments[-2:] == ["--val_data_path", str(photographs / "val")]
    card = (zoo / "cifar10/cifar10-simclr-dense/card.md").read_text()
    own = "data.train_path=FOLDER/train data.val_path=FOLDER/val"
    for text in ("(N, 3, 32, 32)", "10,000 held-out images", "Krizhevsky", "60.00 %", own):
        assert text in card
    assert "Kaynak" not in card


def test_without_a_folder_photographs_are_refused_or_left_out(zoo, runs, capsys):
    before = (zoo / "manifest.json").read_text()
    with pytest.raises(ConfigError, match="needs --data FOLDER"):
        encoders.pack("cifar", runs[0], zoo)
    assert (zoo / "manifest.json").read_text() == before
    entry = {"name": "cifar10-simclr-synccp-90", "checkpoint": {"path": "e/encoder.safetensors"}}
    assert encoders.differences([entry], zoo) == []
    assert "not evaluated: --data FOLDER (CIFAR-10) is missing" in capsys.readouterr().out


def test_a_folder_without_such_cells_is_refused(zoo, tmp_path):
    with pytest.raises(DataError, match="none of its finished cells is in the list"):
        encoders.pack("digits", tmp_path, zoo)


def test_every_name_stands_for_a_cell_of_the_leaderboard():
    from scripts.experiments.leaderboard import results

    for name, (board, cell) in encoders.ENCODERS.items():
        assert results.named(board, cell).name == cell
        assert encoders.board_of(name).dataset in encoders.IMAGES


def test_shipped_cards_say_what_the_manifest_says():
    from solo.checkpoints.zoo import read_manifest

    for entry in read_manifest()["encoders"]:
        file = ROOT / "zoo" / entry["checkpoint"]["path"]
        figures = json.loads((file.parent / "figures.json").read_text())
        record = figures.pop("of_the_run")
        assert figures == entry
        card = encoders.card(entry, record, file.stat().st_size)
        assert (file.parent / "card.md").read_text("utf-8") == card


@pytest.mark.slow
def test_shipped_encoders_are_as_good_as_their_cards_say():
    from solo.checkpoints.zoo import read_manifest

    assert encoders.differences(read_manifest().get("encoders", []), ROOT / "zoo") == []
