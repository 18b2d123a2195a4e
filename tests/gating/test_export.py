# SPDX-License-Identifier: MIT
"""Exported gated encoders: equal to the simulation, and doing as much work as it accounts for."""

import json
import subprocess
import sys
from unittest import mock

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from solo.errors import CheckpointError, ConfigError
from sparse_ext.gating.encoder import choose, gating_of
from sparse_ext.gating.export import OpenEncoder, export_gated, load_gated, save_gated
from sparse_ext.gating.export.__main__ import deviation
from tests.gating.helpers import gated_encoder, plain_encoder

pytestmark = pytest.mark.unit


def settled(shift=0.0, seed=0, **options):
    """A gated encoder in eval mode whose norms and gates are anything but neutral."""
    torch.manual_seed(seed)
    encoder = gated_encoder(**options).eval()
    with torch.no_grad():
        for module in encoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.3)
                module.running_mean.normal_(std=0.3)
                module.running_var.uniform_(0.5, 2)
        for name, parameter in encoder.named_parameters():
            if name.endswith("expand.bias"):
                parameter.add_(shift)
    return choose(encoder, "gated")


def images(n=5, size=24):
    torch.manual_seed(1)
    return torch.randn(n, 3, size, size) * torch.rand(n, 1, 1, 1) * 3


ENCODERS = [
    {},
    {"width": 8, "separate_bn": False},
    {"name": "vicreg_gating"},
    {"dataset": "stl10"},
    {"backbone": "resnet50"},
    {"backbone": "resnet50", "dataset": "stl10", "reduction": 1},
    {"encoders": 2},
    {"gate_bias_init": 0.7},
]


@pytest.mark.parametrize("options", ENCODERS, ids=lambda o: "-".join(map(str, o.values())) or "-")
def test_equal_to_the_simulation(options):
    encoder, x = settled(**options), images(size=40 if "dataset" in options else 24)
    exported = export_gated(encoder)
    with torch.no_grad():
        wanted = encoder(x)
    rates = [v for k, v in gating_of(encoder).context.collect().items() if k.startswith("rate")]
    assert 0.1 < sum(rates) / len(rates) < 0.9
    torch.testing.assert_close(exported(x), wanted, atol=1e-4, rtol=0)
    for i in range(len(x)):  # image by image: the same, with nobody to share a pass with
        torch.testing.assert_close(exported(x[i : i + 1]), wanted[i : i + 1], atol=1e-4, rtol=0)
    assert exported.num_features == wanted.shape[1]


@pytest.mark.parametrize("options", [{}, {"backbone": "resnet50"}, {"gate_bias_init": -0.5}])
def test_it_does_the_work_that_the_simulation_accounts_for(options):
    """Multiply-accumulates that torch's own counter sees, against Eq. 3's account of this image."""
    encoder, x = settled(**options), images(3)
    exported, context = export_gated(encoder), gating_of(encoder).context
    for i in range(3):
        context.collect()
        with torch.no_grad():
            encoder(x[i : i + 1])
        figures = context.collect()
        with FlopCounterMode(display=False) as counter:
            exported(x[i : i + 1])
        assert counter.get_total_flops() == pytest.approx(2 * figures["macs_effective"], rel=1e-6)
        assert figures["macs_effective"] < 0.9 * figures["macs_dense"]
    context.collect()
    with torch.no_grad():
        encoder(x)
    with FlopCounterMode(display=False) as counter:
        exported(x)
    wanted = 2 * 3 * context.collect()["macs_effective"]
    assert counter.get_total_flops() == pytest.approx(wanted, rel=1e-6)  # rho is float32


def test_images_that_share_their_gates_go_together():
    encoder = settled(shift=30.0, gate_bias_init=0.0)  # all open
    exported, x = export_gated(encoder), images(4)
    real = torch.nn.functional.conv2d
    with mock.patch("torch.nn.functional.conv2d", side_effect=real) as calls:
        together = exported(x)
    assert calls.call_count == 1 + 8 * 2 + 3  # stem, eight blocks, three shortcuts
    with torch.no_grad():
        torch.testing.assert_close(together, encoder(x), atol=1e-4, rtol=0)
    twice = torch.cat([x[:1], x[1:2], x[:1]])  # two kinds
    mixed = export_gated(settled())
    torch.testing.assert_close(mixed(twice)[0], mixed(twice)[2], atol=0, rtol=0)
    torch.testing.assert_close(mixed(twice)[1:2], mixed(x[1:2]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_every_gate_closed(backbone):
    encoder = settled(shift=-30.0, gate_bias_init=0.0, backbone=backbone)
    exported, x = export_gated(encoder), images(3)
    with torch.no_grad():
        wanted = encoder(x)
    assert gating_of(encoder).context.collect()["rho"] < 0.15
    torch.testing.assert_close(exported(x), wanted, atol=1e-4, rtol=0)


def test_a_linear_layer_behind_the_features_is_kept(tmp_path):
    encoder, x = settled(), images(2)
    encoder.fc = nn.Linear(32, 7)
    loaded = load_gated(save_gated(export_gated(encoder), tmp_path))
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), encoder(x), atol=1e-4, rtol=0)
    assert loaded.num_features == 7


def test_masks_of_a_sparse_method_are_in_the_weights():
    from sparse_ext.masks.masked_layers import mask_module

    encoder = settled()
    conv = mask_module(encoder.layer1[0].conv1)
    conv.mask[:, ::2] = False
    conv.apply_mask()
    assert deviation(encoder, export_gated(encoder), 24) < 1e-4
    assert not export_gated(encoder).blocks[0].convs[0].weight[:, ::2].any()


def test_the_encoder_is_left_alone():
    encoder = settled()
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    exported = export_gated(encoder)
    exported.stem.weight.zero_()
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
    assert not any(p.requires_grad for p in exported.parameters())


def test_saved_and_loaded_by_one_call(tmp_path):
    encoder, x = settled(budget=0.4), images()
    exported = export_gated(encoder, {"dataset": "cifar10"})
    folder = save_gated(exported, tmp_path / "light")
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    loaded = load_gated(folder)
    assert torch.equal(loaded(x), exported(x))
    assert not loaded.training
    assert isinstance(loaded, OpenEncoder)
    assert loaded.facts["dataset"] == "cifar10"
    assert loaded.facts["gating"]["budget"] == 0.4
    bottleneck = export_gated(settled(backbone="resnet50", dataset="stl10"))
    again = load_gated(save_gated(bottleneck, tmp_path / "light"))  # another one in its place
    assert torch.equal(again(x), bottleneck(x))


def test_damaged_folders_are_named(tmp_path):
    folder = save_gated(export_gated(settled()), tmp_path / "light")
    config = json.loads((folder / "config.json").read_text())
    with pytest.raises(CheckpointError, match=r"nowhere/config\.json: there is no such file"):
        load_gated(tmp_path / "nowhere")
    for content, message in (
        ("{", "damaged, no JSON"),
        ("[]", "damaged, no JSON object"),
        (json.dumps({**config, "format": "other"}), "format 'other' instead of"),
        (json.dumps({k: v for k, v in config.items() if k != "stem"}), "no description.*stem"),
        (json.dumps({**config, "blocks": config["blocks"][:-1]}), "do not fit"),
    ):
        (folder / "config.json").write_text(content)
        with pytest.raises(CheckpointError, match=message):
            load_gated(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="damaged"):
        load_gated(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: there is no such file"):
        load_gated(folder)


def test_encoders_that_cannot_be_exported():
    with pytest.raises(ConfigError, match=r"no gates; `sparse_ext\.export` is for dense"):
        export_gated(plain_encoder())
    with pytest.raises(ConfigError, match="gating=cdg does not close whole channels"):
        export_gated(gated_encoder("cdg", groups=2))
    odd = settled()
    odd.layer1[0].bn1_gated = nn.InstanceNorm2d(4)
    with pytest.raises(ConfigError, match="InstanceNorm2d cannot be folded"):
        export_gated(odd)
    wide = settled()
    wide.layer1[0].conv1.dilation = (2, 2)
    with pytest.raises(ConfigError, match="without dilation"):
        export_gated(wide)


def test_help_needs_no_torch():
    code = (
        "import sys\nfrom sparse_ext.gating.export.__main__ import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--output FOLDER" in done.stdout
