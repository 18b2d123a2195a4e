# SPDX-License-Identifier: MIT
"""Living weights and double batch norms leave training as the network that evaluation sees."""

import json

import pytest
import torch
from safetensors.torch import load_file

from solo.backbones import build_encoder
from solo.checkpoints.exporting import export_encoder, plain_state
from solo.checkpoints.loading import load_encoder
from solo.errors import CheckpointError
from sparse_ext.cost import count
from sparse_ext.cost.__main__ import main as cost
from sparse_ext.export import load_csr, load_packed, masked_weights, save_csr, save_packed, strip
from sparse_ext.export.__main__ import main as export
from sparse_ext.masks.living_weights import evaluated
from tests.methods.helpers import tiny_cfg, tiny_loaders, tiny_trainer
from tests.pruning.living import method

pytestmark = pytest.mark.unit

# method of solo, sparse section, encoder that is evaluated, share of its weights that is kept
LIVING = {
    "sdclr": ("simclr", {"name": "sdclr", "final": 0.7}, "online", 1.0),
    "sd": ("barlow_twins", {"name": "sd", "final": 0.7}, "online", 0.3),
    "sr_ste": ("mocov2plus", {"name": "sr_ste"}, "online", 0.5),
    "sr_ste teacher": ("mocov2plus", {"name": "sr_ste"}, "momentum", 0.5),
    "mcp": ("mocov2plus", {"name": "mcp"}, "momentum", 0.5),
    "mcp online": ("mocov2plus", {"name": "mcp"}, "online", 1.0),
}


@pytest.fixture(params=LIVING)
def trained(request, tmp_path):
    """A run's checkpoint, the encoder as it lies in memory, its name, its kept share."""
    name, section, encoder, kept = LIVING[request.param]
    model = method(name, section)
    run = tiny_trainer()
    run.fit(model, *tiny_loaders())
    path = tmp_path / "a.ckpt"
    run.save_checkpoint(path)
    args = tiny_cfg(name)
    args["sparse"] = section
    (tmp_path / "args.json").write_text(json.dumps(_plain(args)), encoding="utf-8")
    net = model.backbone if encoder == "online" else model.momentum_backbone
    return path, net.eval(), encoder, kept


def _plain(cfg):
    from omegaconf import OmegaConf

    return OmegaConf.to_container(cfg, resolve=True) if OmegaConf.is_config(cfg) else cfg


def features(state, net):
    """What a plain encoder with that state dict makes of two images, and what `net` does."""
    fresh = build_encoder(tiny_cfg("simclr")).eval()
    fresh.load_state_dict(state)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return fresh(x), net(x)


def test_every_file_holds_what_evaluation_sees(trained, tmp_path):
    path, net, encoder, kept = trained
    state = net.state_dict()
    assert torch.equal(*features(strip(state), net))
    for source in (net, path):
        file = export_encoder(source, tmp_path / "dense.safetensors", encoder)
        assert torch.equal(*features(load_file(file), net))
    assert torch.equal(*features(plain_state(torch.load(path), encoder), net))
    loaded = load_encoder(build_encoder(tiny_cfg("simclr")), path, encoder).backbone
    seen = loaded.state_dict()
    assert seen.keys() == evaluated(state).keys()
    assert all(torch.equal(value, evaluated(state)[key]) for key, value in seen.items())
    file = tmp_path / "sparse.safetensors"
    if kept == 1:
        for save in (save_packed, save_csr):
            with pytest.raises(CheckpointError, match="Evaluation sees the dense network"):
                save(state, file)
        return
    save_packed(state, file)
    assert torch.equal(*features(load_packed(file, masks=False), net))
    assert {key for key in load_packed(file) if key.endswith("mask")} == {
        key.replace("weight", "mask") for key in masked_weights(state)
    }
    save_csr(state, file)
    assert torch.equal(*features(load_csr(file, dense=True), net))


def test_its_cost_is_the_same_in_memory_and_as_a_checkpoint(trained, capsys):
    path, net, encoder, kept = trained
    live = count(net, 8)
    own = [x for x in live.layers if x.prunable]
    share = sum(x.kept for x in own) / sum(x.weights for x in own)
    assert share == pytest.approx(kept, abs=1e-3)
    assert cost([str(path), "--encoder", encoder, "--input_size", "8", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["macs_effective"] == round(live.macs_effective)
    assert said["parameters_kept"] == live.parameters_kept
    assert said["parameters"] == live.parameters
    densities = {x["name"]: x["density"] for x in said["layers"]}
    assert densities == {x.name: x.density for x in live.layers}


@pytest.mark.parametrize("form", ["packed", "csr"])
def test_the_command_refuses_masks_that_nobody_evaluates(trained, form, capsys):
    path, net, encoder, kept = trained
    code = export([form, str(path), "--encoder", encoder])
    assert code == (2 if kept == 1 else 0)
    assert ("dense" in capsys.readouterr().err) == (kept == 1)
    if kept < 1:
        load = {"packed": lambda f: load_packed(f, masks=False), "csr": lambda f: load_csr(f, True)}
        (file,) = path.parent.glob(f"*-{form}.safetensors")
        assert torch.equal(*features(load[form](file), net))


def test_a_subnet_that_is_tuned_further_keeps_its_own_statistics(tmp_path):
    """Loading replaces batch norms once, not whenever weights are loaded again."""
    model = method("mocov2plus", {"name": "mcp"})
    run = tiny_trainer()
    run.fit(model, *tiny_loaders())
    run.save_checkpoint(tmp_path / "a.ckpt")
    net = load_encoder(build_encoder(tiny_cfg("simclr")), tmp_path / "a.ckpt", "momentum").backbone
    later = {key: value.clone() for key, value in net.state_dict().items()}
    later["bn1.running_mean"] += 1
    net.load_state_dict(later)
    assert torch.equal(net.bn1.running_mean, later["bn1.running_mean"])
