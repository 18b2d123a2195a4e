# SPDX-License-Identifier: MIT
"""Pretraining that starts from an encoder that exists, sparse and dense, frozen and thawed."""

import pytest
import torch

from solo.checkpoints import load_run
from solo.errors import CheckpointError, ConfigError
from solo.programs.pretrain import pretrain
from sparse_ext.export import load_slim, slim
from sparse_ext.export.packed import save_packed
from tests.programs.tiny import PRETRAIN, config, run_of


def still(**overrides):
    """A run whose encoder cannot move: its weights afterwards are those it started from."""
    optimizer = {**PRETRAIN["optimizer"], "lr": 0.0}
    fixed = {"optimizer": optimizer, "scheduler": {"name": "none"}, "name": "still"}
    return config({**PRETRAIN, **fixed}, **overrides)


def weights(folder):
    return dict(load_run(folder)[0].named_parameters())


def test_a_run_starts_from_another(pretrained, cwd, capsys):
    pretrain(still(init_from=str(pretrained[0])))
    before, after = weights(pretrained[0]), weights("trained_models/mocov2plus/0")
    assert all(torch.equal(before[key], value) for key, value in after.items())
    assert "Started from" in capsys.readouterr().out
    momentum = dict(load_run("trained_models/mocov2plus/0", "momentum")[0].named_parameters())
    assert all(torch.allclose(before[key], value) for key, value in momentum.items())


def test_a_sparse_run_starts_from_a_dense_one_and_a_dense_one_from_a_sparse_one(pretrained, cwd):
    pretrain(still(init_from=str(pretrained[0]), sparse={"name": "random", "final": 0.5}))
    run = "trained_models/mocov2plus/0"
    before, after = weights(pretrained[0]), load_run(run)[0]
    layer = after.layer4[1].conv2
    assert not layer.mask.all()
    assert torch.equal(layer.weight, before["layer4.1.conv2.weight"] * layer.mask)
    pretrain(still(init_from=run, name="dense"))
    again = load_run("trained_models/mocov2plus/1")[0]
    assert not hasattr(again.layer4[1].conv2, "mask")
    assert torch.equal(again.layer4[1].conv2.weight, layer.weight)
    save_packed(after.state_dict(), "packed.safetensors")
    pretrain(still(init_from="packed.safetensors", name="packed"))
    packed = load_run("trained_models/mocov2plus/2")[0]
    assert torch.equal(packed.layer4[1].conv2.weight, layer.weight)


def test_a_run_starts_from_a_slim_encoder(cwd):
    """Online and momentum encoder take its widths, and can train on."""
    section = {"name": "gmp", "granularity": "filter", "coupled": True, "final": 0.5}
    section |= {"ramp_end": 0.2, "update_period": 1}
    wide = {"backbone__kwargs": {"width": 4}}
    pretrain(config(PRETRAIN, sparse=section, max_epochs=3, **wide))
    slim(run_of(cwd)[1], "slim")
    wanted = load_slim("slim").state_dict()
    pretrain(still(init_from="slim", name="narrow", **wide))
    for which in ("online", "momentum"):
        net = load_run("trained_models/mocov2plus/1", which)[0]
        assert net.layer4[0].conv1.out_channels < 32
        for name, value in net.named_parameters():
            assert torch.allclose(value, wanted[name], atol=1e-6), name
    pretrain(config(PRETRAIN, init_from="slim", name="on", **wide))
    trained = load_run("trained_models/mocov2plus/2")[0]
    assert not torch.equal(trained.conv1.weight, wanted["conv1.weight"])


def test_frozen_modules_thaw(pretrained, cwd):
    frozen = {"modules": ["conv1", "layer1"], "epochs": 1}
    pretrain(config(PRETRAIN, init_from=str(pretrained[0]), freeze=frozen))
    before, after = load_run(pretrained[0])[0], load_run("trained_models/mocov2plus/0")[0]
    same = {k for k, v in before.state_dict().items() if torch.equal(v, after.state_dict()[k])}
    assert all(k in same for k in before.state_dict() if k.startswith(("conv1", "layer1")))
    assert not any(k in same for k in before.state_dict() if k.startswith("layer4.1.conv"))
    pretrain(config(PRETRAIN, init_from=str(pretrained[0]), freeze=frozen, max_epochs=2, name="b"))
    thawed = load_run("trained_models/mocov2plus/1")[0]
    assert not torch.equal(thawed.conv1.weight, before.conv1.weight)


def test_mistakes_are_named(pretrained, cwd):
    with pytest.raises(CheckpointError, match="there is no such checkpoint"):
        pretrain(config(PRETRAIN, init_from="nowhere.ckpt"))
    with pytest.raises(ConfigError, match=r"freeze\.modules: .*'layr1'.*Did you mean 'layer1'"):
        pretrain(config(PRETRAIN, freeze={"modules": ["layr1"], "epochs": 1}))
