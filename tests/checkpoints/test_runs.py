# SPDX-License-Identifier: MIT
"""A finished run opens the same way for everybody, whatever masks and gates it was trained with."""

import json
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from solo.backbones import build_encoder
from solo.checkpoints import load_pretrained, load_run
from solo.checkpoints.exporting import export_encoder
from solo.checkpoints.runs import open_run
from solo.errors import CheckpointError
from solo.programs.evaluation import Features, load_method
from solo.programs.linear import load_backbone
from solo.programs.pretrain import pretrain
from sparse_ext.config.sections import METHODS as SPARSE
from sparse_ext.cost.of_checkpoint import measure
from sparse_ext.export.__main__ import main as export
from sparse_ext.extension import register
from sparse_ext.gating.config.sections import METHODS as GATING
from sparse_ext.report import RunLog
from sparse_ext.report.one_run import checkpoint_costs
from tests.programs.tiny import LINEAR, PRETRAIN, config, run_of

SIMCLR = {
    "method": "simclr",
    "method_kwargs": {"proj_hidden_dim": 8, "proj_output_dim": 8, "temperature": 0.2},
}
VICREG = {"method": "vicreg", "method_kwargs": {"proj_hidden_dim": 8, "proj_output_dim": 8}}
WIDE = {"backbone__kwargs": {"width": 4}}  # as many channels as groups and heads
# what a run needs beside its section; mocov2plus has a momentum encoder
OTHERS = {
    "sdclr": SIMCLR,
    "vicreg_gating": VICREG,
    "vicreg_dual": VICREG,
    "cgnet": WIDE,
    "cdg": WIDE,
    "dgc": WIDE,
}
ALL = [("", ""), *(("sparse", n) for n in SPARSE), *(("gating", n) for n in GATING)]
# one of each kind of checkpoint is tried by default: stored zeros, living weights, gates
KINDS = ("", "synccp", "sd", "sdclr", "mcp", "sr_ste", "vicreg_dual", "dgc")
TABLE = [pytest.param(*x, marks=[] if x[1] in KINDS else pytest.mark.slow) for x in ALL]


same = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-6)  # training is channels_last


def features(net):
    x = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        out = net.eval()(x)
    return out["feats"] if isinstance(out, dict) else out


@pytest.mark.parametrize(("section", "name"), TABLE, ids=lambda value: value or "dense")
def test_every_program_sees_the_encoder_that_was_trained(section, name, tmp_path, monkeypatch):
    register()
    monkeypatch.chdir(tmp_path)
    own = OTHERS.get(name, {})
    if name == "fixed":  # trains the masks that its source has
        source = {"checkpoint__dir": "source", "sparse": {"name": "snip"}}
        pretrain(config(PRETRAIN, limit_val_batches=0, **source))
        own = {"init_from": str(tmp_path / "source" / "mocov2plus" / "0")}
    sections = {section: {"name": name}} if section else {}
    trained = pretrain(config(PRETRAIN, limit_val_batches=0, **own, **sections)).model
    run, checkpoint = run_of(tmp_path, own.get("method", "mocov2plus"))
    assert (json.loads((run / "args.json").read_text()).get(section) or {}).get("name", "") == name
    linear = {
        "pretrained_feature_extractor": str(run),
        **{k: v for k, v in own.items() if k in WIDE},
    }
    for which in open_run(run).encoders:
        net = trained.backbone if which == "online" else trained.momentum_backbone
        truth = features(net)
        assert truth.abs().sum() > 0
        for path in (run, checkpoint):
            same(features(load_run(path, which)[0]), truth)
            same(features(load_pretrained(path, which)), truth)
        same(features(Features(load_method(run, which), which)), truth)  # kNN, UMAP
        cfg = config(LINEAR, pretrain_method=trained.cfg.method, eval_encoder=which, **linear)
        same(features(load_backbone(cfg).backbone), truth)
        assert measure(run, which).prunable.sparsity == measure(checkpoint, which).prunable.sparsity
        if section != "gating":
            assert export(["dense", str(checkpoint), "--encoder", which]) == 0
            for file in (
                checkpoint.with_name(f"{checkpoint.stem}-dense.safetensors"),
                export_encoder(checkpoint, tmp_path / "exported.safetensors", which),
            ):
                plain = build_encoder(cfg)
                plain.load_state_dict(load_file(file))
                same(features(plain), truth)
    has_momentum = hasattr(trained, "momentum_backbone")
    assert list(checkpoint_costs(RunLog(run))) == ["online", "momentum"][: 1 + has_momentum]


def test_what_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no \.ckpt file in it"):
        load_run(tmp_path)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_run(tmp_path / "name-ep=3.ckpt")
    torch.save({"state_dict": {"backbone.conv1.weight": torch.zeros(1)}}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"a\.ckpt: there is no args\.json beside it"):
        load_run(tmp_path)
