# SPDX-License-Identifier: MIT
"""`python3 -m solo.quality`: figures of a run's encoder on a folder, against a pass by hand."""

import json

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from solo.data.catalogue import info_of
from solo.errors import DataError
from solo.methods import METHODS
from solo.quality import alpha_req, rankme
from solo.quality.__main__ import main
from solo.quality.program import quality_of_run
from tests.methods.helpers import tiny_cfg, tiny_trainer

pytestmark = pytest.mark.unit

VIEW = {"crop_size": 32, "num_crops": 2, "horizontal_flip": {"prob": 0.5}}
KWARGS = {"proj_hidden_dim": 8, "proj_output_dim": 6, "pred_hidden_dim": 5}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    cfg = tiny_cfg("byol", KWARGS)
    torch.manual_seed(0)
    model = METHODS["byol"](cfg)
    with torch.no_grad():
        for p in model.momentum_backbone.parameters():
            p.add_(0.02 * torch.randn_like(p))
    trainer = tiny_trainer()
    trainer.strategy.connect(model)
    trainer.save_checkpoint(folder / "tiny-0-ep=0.ckpt")
    args = OmegaConf.to_container(cfg) | {"augmentations": [VIEW]}
    (folder / "args.json").write_text(json.dumps(args))
    return folder, model.eval()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(12):
        where = folder / f"class{i % 3}"
        where.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(where / f"{i}.png")
    (folder / "notes.txt").write_text("no image")
    (folder / "class0" / "._0.png").write_text("what a Mac leaves behind")
    return folder


@pytest.mark.parametrize("encoder", ["online", "momentum"])
def test_figures_are_those_of_a_pass_by_hand(run, images, encoder):
    folder, model = run
    figures = quality_of_run(folder, images, encoder, batch_size=5, views=3)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in info_of("cifar10").evaluation_statistics)
    x = torch.stack(
        [
            (torch.from_numpy(np.array(Image.open(p))).permute(2, 0, 1) / 255 - mean) / std
            for p in sorted(images.rglob("[!.]*.png"))
        ]
    )
    backbone = model.momentum_backbone if encoder == "momentum" else model.backbone
    with torch.no_grad():
        rows = backbone(x)
    assert figures["rankme"] == pytest.approx(float(rankme(rows)), rel=1e-4)
    assert figures["alpha_req"] == pytest.approx(float(alpha_req(rows)), nan_ok=True)
    assert (figures["images"], figures["views"], figures["dimensions"]) == (12, 3, 32)
    assert 1 <= figures["lidar"] <= 11
    again = quality_of_run(folder, images, encoder, batch_size=5, views=3)
    assert again == pytest.approx(figures, nan_ok=True)


def test_the_command(run, images, capsys):
    folder, _ = run
    assert main([str(folder), "--data", str(images), "--images", "6", "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert "online encoder, 32 features, 6 images" in text
    assert "settle from about 160 images" in text
    assert main([str(folder), "--data", str(images), "--json", "--views", "1"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert "lidar" not in figures
    assert figures["images"] == 12


def test_mistakes_are_named(run, images, tmp_path, capsys):
    folder, _ = run
    with pytest.raises(DataError, match="there is no folder"):
        quality_of_run(folder, tmp_path / "none")
    with pytest.raises(DataError, match="holds no images"):
        quality_of_run(folder, tmp_path)
    assert main([str(tmp_path), "--data", str(images)]) == 2
    assert "error:" in capsys.readouterr().err
