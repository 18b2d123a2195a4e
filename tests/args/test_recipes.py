# SPDX-License-Identifier: MIT
"""Every YAML file under scripts/ composes, parses, and builds its model (without its weights)."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from solo.args import linear, pretrain
from solo.args.check import require
from solo.args.schema import Linear, Pretrain
from solo.backbones import build_encoder
from solo.data.views.augmentation_keys import checked_augmentation

SCRIPTS = Path(__file__).parents[2] / "scripts"
FILES = [
    path.relative_to(SCRIPTS).as_posix()
    for kind in ("pretrain", "linear", "finetune", "sparse")
    for path in sorted((SCRIPTS / kind).glob("**/*.yaml"))
    if path.parent.name not in ("augmentations", "wandb", "sparse", "gating")
]


def test_there_are_recipes():
    assert len(FILES) >= 66 - 6  # groups aside


def a_class(folder):
    """A folder with two classes of two images."""
    for file in ("a/0.png", "a/1.png", "b/0.png", "b/1.png"):
        (folder / "own" / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / "own" / file)
    return folder / "own"


def composed(path, tmp_path):
    register = pytest.importorskip("sparse_ext.extension").register
    register()
    file = (SCRIPTS / path).resolve()
    own = []
    if file.stem == "any":  # what it needs, and what an evaluation takes from a run
        more = "image_size=32" if "pretrain" in path else "+backbone.name=resnet18"
        own = [f"data.path={a_class(tmp_path)}", more]
    with initialize_config_dir(str(file.parent), version_base="1.2"):
        cfg = compose(file.stem, own)
    OmegaConf.set_struct(cfg, False)
    if (
        cfg.data.dataset in ("custom", "voc07") and not own
    ):  # classes are counted below the user's path
        lists = tmp_path / "ImageSets/Main"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / "cow_trainval.txt").touch()
        cfg.data.train_path = str(tmp_path)
    return cfg


@pytest.mark.parametrize("path", [path for path in FILES if path.startswith("pretrain/")])
def test_our_own_augmentations_warn_of_nothing(path, tmp_path, recwarn):
    cfg = composed(path, tmp_path)
    for index, entry in enumerate(cfg.augmentations):
        checked_augmentation(entry, f"augmentations.{index}")
    assert [str(warning.message) for warning in recwarn] == []


def test_a_switch_that_says_otherwise_is_named():
    entry = {"crop_size": 32, "num_crops": 1, "grayscale": {"enabled": False, "prob": 0.2}}
    with pytest.warns(UserWarning, match=r"grayscale\.enabled=False has no effect: .*prob=0\.2"):
        assert checked_augmentation(entry)["grayscale"]["prob"] == 0.2


@pytest.mark.parametrize("path", FILES)
def test_composes_parses_and_builds(path, tmp_path, monkeypatch):
    cfg = composed(path, tmp_path)
    if cfg.get("method") == "distill":  # users name the teacher; here it is an untrained twin
        cfg.method_kwargs.teacher = "a run"
        monkeypatch.setattr(
            "solo.methods.teacher.open_teacher", lambda *_: (build_encoder(cfg), None)
        )
    if "augmentations" in cfg:
        pretrain.parse_cfg(cfg)
        require(cfg, Pretrain)
        from solo.methods import METHODS

        with torch.device("meta"):
            model = METHODS[cfg.method](cfg)
        assert model.num_large_crops == cfg.data.num_large_crops
    else:
        linear.parse_cfg(cfg)
        require(cfg, Linear)
        with torch.device("meta"):
            assert sum(p.numel() for p in build_encoder(cfg).parameters()) > 1e4
