# SPDX-License-Identifier: MIT
"""Conversion of a checkpoint to Detectron2's names, under both of its paths."""

import importlib.util
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from solo.backbones import BACKBONES
from solo.backbones.build import adapt_resnet

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = (
    "scripts/utils/convert_model_to_detectron2.py",
    "downstream/object_detection/convert_model_to_detectron2.py",
)


def checkpoint(path, small_images=False, name="resnet50", prefix="backbone."):
    net = BACKBONES[name](None, width=2)
    adapt_resnet(net, small_images)
    state = {prefix + key: value for key, value in net.state_dict().items()}
    torch.save({"state_dict": {**state, "projector.0.weight": torch.ones(1)}}, path)
    return net


def run(source, output, *more):
    spec = importlib.util.spec_from_file_location("convert", ROOT / SCRIPTS[0])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    arguments = ["--pretrained_feature_extractor", str(source)]
    return module.main([*arguments, "--output_detectron_model", str(output), *more])


def test_both_paths_run_from_anywhere(tmp_path):
    checkpoint(tmp_path / "a.ckpt")
    for i, script in enumerate(SCRIPTS):
        command = [sys.executable, str(ROOT / script), "--pretrained_feature_extractor", "a.ckpt"]
        command += ["--output_detectron_model", f"{i}.pkl"]
        subprocess.run(command, cwd=tmp_path, check=True, env={"OMP_NUM_THREADS": "1"})
    assert (tmp_path / "0.pkl").read_bytes() == (tmp_path / "1.pkl").read_bytes()


def test_names_and_values(tmp_path):
    net = checkpoint(tmp_path / "a.ckpt")
    assert run(tmp_path / "a.ckpt", tmp_path / "out" / "a.pkl") == 0
    with (tmp_path / "out" / "a.pkl").open("rb") as file:
        content = pickle.load(file)
    assert content["matching_heuristics"] is True
    assert content["__author__"]
    model, state = content["model"], net.state_dict()
    assert len(model) == len(state)
    for theirs, ours in {
        "stem.conv1.weight": "conv1.weight",
        "stem.conv1.norm.running_mean": "bn1.running_mean",
        "res2.0.shortcut.weight": "layer1.0.downsample.0.weight",
        "res2.0.shortcut.norm.bias": "layer1.0.downsample.1.bias",
        "res4.5.conv3.weight": "layer3.5.conv3.weight",
        "res5.2.conv3.norm.weight": "layer4.2.bn3.weight",
    }.items():
        np.testing.assert_array_equal(model[theirs], state[ours].numpy())


def test_momentum_encoder_and_masks(tmp_path):
    net = checkpoint(tmp_path / "a.ckpt", prefix="momentum_backbone.")
    content = torch.load(tmp_path / "a.ckpt")
    mask = torch.zeros_like(net.conv1.weight, dtype=torch.bool)
    content["state_dict"]["momentum_backbone.conv1.mask"] = mask
    torch.save(content, tmp_path / "a.ckpt")
    assert run(tmp_path / "a.ckpt", tmp_path / "a.pkl", "--encoder", "momentum") == 0
    model = pickle.loads((tmp_path / "a.pkl").read_bytes())["model"]
    assert not model["stem.conv1.weight"].any()
    assert "stem.conv1.mask" not in model


def test_bad_input(tmp_path, capsys):
    checkpoint(tmp_path / "small.ckpt", small_images=True)
    torch.save({"backbone.cls_token": torch.ones(1)}, tmp_path / "vit.ckpt")
    for name, message in (
        ("no.ckpt", "error: .*no such checkpoint"),
        ("small.ckpt", "error: .*3x3 stem for small images"),
        ("vit.ckpt", "error: .*not a ResNet"),
    ):
        assert run(tmp_path / name, tmp_path / "a.pkl") == 2
        assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "a.pkl").exists()
