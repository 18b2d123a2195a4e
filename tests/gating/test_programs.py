# SPDX-License-Identifier: MIT
"""A gated checkpoint through main_pretrain, main_linear, main_knn and load_pretrained."""

import csv
import json
import os
import sys
from pathlib import Path

import pytest
import torch

from solo.args.knn import parse_args_knn
from solo.checkpoints import load_pretrained
from solo.errors import CheckpointError, ConfigError
from solo.programs.knn import knn
from solo.programs.linear import linear, load_backbone
from solo.programs.pretrain import pretrain
from sparse_ext.extension import register
from sparse_ext.gating.encoder import choose, gating_of
from tests.programs.tiny import LINEAR, PRETRAIN, config, run_of

pytestmark = pytest.mark.unit

WIDTH = {"backbone__kwargs": {"width": 4}}
KWARGS = {"proj_hidden_dim": 16, "proj_output_dim": 8}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of a gated and a dense VICReg run."""
    register()
    folder, before = tmp_path_factory.mktemp("runs"), os.getcwd()
    os.chdir(folder)
    try:
        for gating in ({"name": "vicreg_dual", "budget": 0.3}, None):
            changes = {} if gating is None else {"gating": gating}
            pretrain(config(PRETRAIN, method="vicreg", method_kwargs=KWARGS, **WIDTH, **changes))
    finally:
        os.chdir(before)
    return run_of(folder, "vicreg", "0"), run_of(folder, "vicreg", "1")


@pytest.fixture
def cwd(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def evaluate(checkpoint, **changes):
    return linear(config(LINEAR, pretrained_feature_extractor=str(checkpoint), **WIDTH, **changes))


def test_what_a_run_leaves_behind(runs):
    folder, checkpoint = runs[0]
    args = json.loads((folder / "args.json").read_text())
    assert args["gating"]["name"] == "vicreg_dual"
    assert args["gating"]["lamb"] == 5.0
    with open(folder / "metrics.csv", newline="") as file:
        columns = set(next(csv.reader(file)))
    assert {"gating/rho", "gating/rate/layer1.0", "gating/val_flops_reduction"} <= columns
    assert "backbone.layer1.0.bn1_gated.weight" in torch.load(checkpoint)["state_dict"]


def test_linear_evaluation_of_both_branches(runs, cwd, capsys):
    """Rebuilt from the checkpoint alone; the reduction stands beside the accuracy."""
    source = torch.load(runs[0][1])["state_dict"]
    reductions = {}
    for version, branch in enumerate((None, "gated", "dense")):
        changes = {} if branch is None else {"gating": {"eval": branch}}
        metrics = evaluate(runs[0][1], **changes).callback_metrics
        reductions[branch] = metrics["encoder/flops_reduction"].item()
        out = capsys.readouterr().out
        assert f"flops_reduction: {reductions[branch]:.6g} (validation images)" in out
        state = torch.load(run_of(cwd, "linear", str(version))[1])["state_dict"]
        for key, value in state.items():
            if key.startswith("backbone.") and "gating_config" not in key:
                assert torch.equal(value, source[key]), key
    assert reductions[None] == reductions["gated"]
    assert 0 < reductions["gated"] < 1
    assert reductions["dense"] == 0


def test_fine_tuning_keeps_the_gates_at_work(runs, cwd):
    trainer = evaluate(runs[0][1], finetune=True)
    assert "gating/budget_loss_epoch" in trainer.callback_metrics
    assert 0 < trainer.callback_metrics["encoder/flops_reduction"] < 1
    before = torch.load(runs[0][1])["state_dict"]
    after = torch.load(run_of(cwd, "linear")[1])["state_dict"]
    moved = {k for k in after if k.startswith("backbone.") and not torch.equal(after[k], before[k])}
    assert "backbone.layer1.0.gate.expand.weight" in moved
    assert "backbone.layer1.0.bn1_gated.weight" in moved
    assert "backbone.layer1.0.bn1.weight" not in moved  # of the branch that is not in use
    again = load_pretrained(run_of(cwd, "linear")[0])
    assert gating_of(again).config.eval == "gated"


def test_knn(runs, monkeypatch, capsys):
    results = {}
    for branch in (None, "dense"):
        extra = [] if branch is None else ["--gating_eval", branch]
        argv = ["main_knn.py", "--dataset", "digits", "--pretrained_checkpoint_dir"]
        argv += [str(runs[0][0]), "--num_workers", "0", "--batch_size", "64", "--k", "1", *extra]
        monkeypatch.setattr(sys, "argv", argv)
        (results[branch],) = knn(parse_args_knn())
    assert 0 < results[None]["flops_reduction"] < 1
    assert results["dense"]["flops_reduction"] == 0
    assert results["dense"]["macs_effective"] == results[None]["macs_dense"]
    assert "flops_reduction: 0 (validation images)" in capsys.readouterr().out
    assert 0 <= results[None]["acc1"] <= 100


def test_load_pretrained(runs):
    backbone = load_pretrained(runs[0][0])
    assert gating_of(backbone).config.budget == 0.3
    x = torch.randn(2, 3, 32, 32)
    gated, dense = backbone(x), choose(backbone, "dense")(x)
    assert gated.shape == dense.shape == (2, 32)
    assert not torch.equal(gated, dense)


def test_mistakes_of_an_evaluation(runs, cwd):
    with pytest.raises(ConfigError, match="Did you mean 'dense'"):
        evaluate(runs[0][1], gating={"eval": "dens"})
    with pytest.raises(ConfigError, match="this encoder has no gates"):
        evaluate(runs[1][1], gating={"eval": "dense"})
    with pytest.raises(CheckpointError, match="no gates"):
        evaluate(runs[1][1], gating="vicreg_dual")
    with pytest.raises(CheckpointError, match=r"gating\.budget is 0\.5 here"):
        evaluate(runs[0][1], gating={"name": "vicreg_dual", "budget": 0.5})
    assert list(Path(cwd).iterdir()) == []


def test_a_whole_section_will_do_in_an_evaluation(runs):
    cfg = config(LINEAR, pretrained_feature_extractor=str(runs[0][1]), **WIDTH)
    cfg.gating = {"name": "vicreg_dual", "eval": "dense"}
    from solo.args.linear import parse_cfg

    backbone = load_backbone(parse_cfg(cfg)).backbone
    assert gating_of(backbone).context.evaluation == "dense"
