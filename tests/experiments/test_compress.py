# SPDX-License-Identifier: MIT
"""scripts/compress.sh: which images recovery sees, and that no recovery is taken for another."""

import json

import pytest
import torch
from PIL import Image

from scripts.experiments.compress.__main__ import main
from scripts.experiments.compress.recovery import configuration, key_of
from solo.data.datasets.images import readers
from solo.data.pretrain_dataloader import build_transform_pipeline, prepare_datasets
from tests.export.nets import encoder
from tests.programs.conftest import pretrained

__all__ = ["pretrained"]
OWN = {"mean": [0.1] * 3, "std": [0.5] * 3}
CIFAR = {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2470, 0.2435, 0.2616]}


def facts(dataset="custom", **entry):
    views = [{"crop_size": 24, **entry}]
    return {
        "name": "tiny",
        "backbone": {"name": "resnet18", "kwargs": {"width": 2}},
        "data": {"dataset": dataset, "exif": "apply"},
        "augmentations": views,
        "pruned": {"method": "wanda", "granularity": "element", "sparsities": [0.8]},
    }


@pytest.mark.parametrize("where", [".", "dark", "dark/deep"])
@pytest.mark.parametrize(("dataset", "look"), [("custom", OWN), ("cifar10", CIFAR)])
def test_images_lie_anywhere_and_look_as_the_run_saw_them(where, dataset, look, tmp_path):
    (tmp_path / where).mkdir(parents=True, exist_ok=True)
    for i in range(3):
        Image.new("RGB", (40, 48), (51, 51, 51)).save(tmp_path / where / f"{i}.png")
    config = configuration(facts(dataset, **OWN), "RUN", tmp_path, str(tmp_path), epochs=1)
    assert config["optimizer"]["batch_size"] == 3
    data = config["data"]
    dataset = prepare_datasets(
        data["dataset"],
        build_transform_pipeline(data["dataset"], config["augmentations"][0]),
        data["train_path"],
        no_labels=data["no_labels"],
        exif=data["exif"],
    )
    assert len(dataset) == 3
    assert readers(data["exif"], value_range=data["value_range"])
    image = dataset[0][1]
    level = (0.2 - look["mean"][0]) / look["std"][0]
    assert image.shape == (3, 24, 24)
    assert torch.allclose(image[0], torch.full((24, 24), level), atol=1e-5)


def test_recoveries_of_other_settings_have_other_folders(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")

    def key(source="RUN", epochs=1, **pruned):
        args = facts()
        config = configuration(args, source, tmp_path, str(tmp_path), epochs)
        return key_of(config, args["pruned"] | pruned)

    keys = [key(), key(sparsities=[0.5]), key(method="lamp"), key(source="RUN2"), key(epochs=2)]
    assert len(set(keys)) == len(keys)
    assert key() == keys[0]


@pytest.mark.slow
def test_two_sparsities_in_one_folder(pretrained, tmp_path, capsys):
    """The second is not given the first one's encoder, and a finished one is not trained again."""
    for sparsity in ("0.8", "0.5", "0.8"):
        words = [str(pretrained[0]), "digits", sparsity, "--epochs", "1", "--method", "magnitude"]
        assert main([*words, "--out", str(tmp_path)]) == 0
        rows = json.loads((tmp_path / "summary.json").read_text())
        assert rows["recovered"]["sparsity"] == pytest.approx(float(sparsity), abs=0.01)
    assert len(list(tmp_path.glob("recovery/*/distill/*"))) == 2


@pytest.mark.slow
def test_a_weight_file_is_compressed(tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(8):
        Image.new("RGB", (40, 48), (20 * i, 51, 200 - 20 * i)).save(
            tmp_path / "images" / f"{i}.png"
        )
    torch.save(encoder(width=2, dataset="custom").state_dict(), tmp_path / "net.pth")
    words = [str(tmp_path / "net.pth"), str(tmp_path / "images"), "0.5", "--epochs", "1"]
    words += ["--backbone", "resnet18", "--backbone_kwargs", '{"width": 2}']
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    rows = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert rows["recovered"]["sparsity"] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("words", [["0.5,0.8"], ["0.8", "--backbone_kwargs", "width"]])
def test_mistakes_in_the_command(words, capsys):
    with pytest.raises(SystemExit):
        main(["RUN", "digits", *words])
    assert "invalid" in capsys.readouterr().err
