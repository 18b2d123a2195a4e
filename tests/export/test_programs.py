# SPDX-License-Identifier: MIT
"""A run that slims itself, and exported slim encoders, through the programs."""

import json
import os

import pytest
import torch

from solo.programs.evaluation import load_method
from solo.programs.linear import linear
from solo.programs.pretrain import pretrain
from sparse_ext.export import load_slim, slim
from tests.programs.tiny import LINEAR, PRETRAIN, config, run_of

pytestmark = pytest.mark.unit
SPARSE = {
    "name": "gmp",
    "granularity": "filter",
    "coupled": True,
    "final": 0.5,
    "ramp_end": 0.2,
    "update_period": 1,
}


def run(folder, **section):
    before = os.getcwd()
    os.chdir(folder)
    try:
        pretrain(config(PRETRAIN, backbone__kwargs={"width": 4}, sparse={**SPARSE, **section},
                        max_epochs=3))  # fmt: skip
    finally:
        os.chdir(before)
    return run_of(folder)


@pytest.fixture(scope="module")
def sparse_run(tmp_path_factory):
    return run(tmp_path_factory.mktemp("run"))


def evaluation(path, **kwargs):
    return config(
        LINEAR, backbone__kwargs={"width": 4}, pretrained_feature_extractor=str(path), **kwargs
    )


@pytest.mark.parametrize("finetune", [False, True])
def test_linear_evaluation_and_fine_tuning_of_a_slim_file(
    sparse_run, tmp_path, monkeypatch, finetune
):
    monkeypatch.chdir(tmp_path)
    done = slim(sparse_run[1], tmp_path / "slim")
    linear(evaluation(done.path, finetune=finetune))
    state = torch.load(run_of(tmp_path, "linear")[1])["state_dict"]
    wanted = load_slim(done.path).state_dict()
    shapes = {k: v.shape for k, v in state.items() if k.startswith("backbone.")}
    assert shapes == {f"backbone.{k}": v.shape for k, v in wanted.items()}


def test_knn_of_a_slim_folder(sparse_run, tmp_path):
    done = slim(sparse_run[1], tmp_path)
    model = load_method(tmp_path)
    assert model.backbone.layer4[0].conv1.out_channels < 32
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.backbone(x), load_slim(done.path)(x))


def test_a_run_that_slims_itself(tmp_path, monkeypatch):
    folder, checkpoint = run(tmp_path, slim_at=4, final=0.6)
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    args = json.loads((folder / "args.json").read_text())
    assert args["sparse"]["slim_at"] == 4
    model = load_method(folder, "momentum")
    for name in ("backbone", "momentum_backbone"):
        conv = model.get_submodule(name).layer4[0].conv1
        assert conv.out_channels < 32
        assert torch.equal(conv.weight, state[f"{name}.layer4.0.conv1.weight"])
    monkeypatch.chdir(tmp_path)
    linear(evaluation(checkpoint))
