# SPDX-License-Identifier: MIT
"""Folders that timm loads: the same features, an honest card, named refusals."""

import json

import pytest
import timm
import torch
from omegaconf import OmegaConf
from torch import nn

from solo.backbones import build_encoder
from solo.errors import CheckpointError
from sparse_ext.export import load_slim, slim
from sparse_ext.export.formats import FORMATS, Request
from sparse_ext.export.timm_arguments import arguments
from sparse_ext.masks.encoder import Encoder
from sparse_ext.masks.masked_layers import masked_layers
from sparse_ext.masks.masking import patch_named
from sparse_ext.pruning.coupled_units import CoupledUnits
from tests.export.nets import encoder, features, masked
from tests.export.test_slim import run_folder


def request(tmp_path, name, size, dataset="custom", **kwargs):
    args = {
        "name": "tiny",
        "method": "simclr",
        "backbone": {"name": name, "kwargs": kwargs},
        "data": {"dataset": dataset},
        "augmentations": [{"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}],
    }
    torch.manual_seed(0)
    net = build_encoder(OmegaConf.create(args))
    (tmp_path / "args.json").write_text(json.dumps(args))
    (tmp_path / "metrics.csv").write_text("epoch,step,val_acc1\n0,1,12.5\n1,2,\n")
    return Request(tmp_path / "tiny.ckpt", net, tmp_path / "hub", size)


@pytest.mark.parametrize(
    ("name", "size", "kwargs", "layer"),
    [
        ("vit_tiny", 32, {"img_size": 32, "patch_size": 8, "depth": 2}, "blocks.0.mlp.fc1"),
        ("resnet18", 64, {}, "layer1.0.conv1"),
        ("convnext_atto", 64, {}, "stages.0.blocks.0.mlp.fc1"),
    ],
)
def test_timm_puts_out_the_same_features(tmp_path, name, size, kwargs, layer):
    asked = request(tmp_path, name, size, **kwargs)
    net = patch_named(asked.backbone, [layer])
    masked = masked_layers(net)[layer]
    masked.mask[::2] = False
    masked.apply_mask()
    assert "local-dir:" in FORMATS["hub"](asked)[0]
    model = timm.create_model(f"local-dir:{asked.path}", pretrained=True).eval()
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        assert torch.allclose(model(images), net.eval()(images), atol=1e-4)
    assert tuple(model.pretrained_cfg["mean"]) == (0.1, 0.2, 0.3)
    card = (asked.path / "README.md").read_text()
    assert "| sparsity of the prunable layers | 50" in card
    assert "| `val_acc1` (last logged) | 12.5 |" in card


def test_arguments_of_a_resnet_are_read_from_its_widths():
    for width in (32, 24):
        assert arguments(timm.create_model("resnet26", base_width=width)) == {"base_width": width}
    net = timm.create_model("resnet26")
    net.layer2[1].conv2 = nn.Conv2d(64, 60, 3)
    assert arguments(net) == {}
    assert arguments(nn.Linear(3, 4)) == {}


def test_slim_encoders_of_equal_shares_are_timm_models(tmp_path):
    """Half of the hidden units of every block; and one more in one block is refused."""
    name, kwargs = "vit_tiny", {"img_size": 32, "patch_size": 16, "depth": 2}
    args = {
        "method": "simclr",
        "backbone": {"name": name, "kwargs": kwargs},
        "data": {"dataset": "custom"},
        "augmentations": [{"crop_size": 32}],
    }
    for odd in (False, True):
        net = masked(encoder(name, "custom", **kwargs), stem_dense=False)
        units = CoupledUnits("filter", Encoder(net), net, both_sides=True)
        chosen = [n for n in units.sizes if "mlp" in n]
        kept = {n: torch.ones(k, dtype=torch.bool) for n, k in units.sizes.items()}
        kept |= {n: torch.arange(units.sizes[n]) % 2 == 0 for n in chosen}
        kept[chosen[0]][1] = odd
        Encoder(net).change(units.expand(kept, Encoder(net)), "zero")
        done = slim(run_folder(tmp_path / str(odd), net, args=args))
        asked = Request(done.path, load_slim(done.path), tmp_path / f"hub{odd}", 32)
        if odd:
            with pytest.raises(CheckpointError, match="where all blocks have lost the same share"):
                FORMATS["hub"](asked)
            continue
        FORMATS["hub"](asked)
        about = json.loads((asked.path / "config.json").read_text())
        assert about["model_args"]["mlp_ratio"] == 2.0
        model = timm.create_model(f"local-dir:{asked.path}", pretrained=True)
        torch.testing.assert_close(features(model, 32), features(net, 32), rtol=1e-4, atol=1e-4)


def test_encoders_without_a_counterpart_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"not laid out like timm's resnet18 .*3x3 stem"):
        FORMATS["hub"](request(tmp_path, "resnet18", 32, "cifar10"))
    assert not (tmp_path / "hub").exists()
    with pytest.raises(CheckpointError, match=r"does not take backbone\.kwargs=.*width"):
        FORMATS["hub"](request(tmp_path, "resnet18", 32, width=8))
    with pytest.raises(CheckpointError, match="wide_resnet28w2 has no counterpart in timm"):
        FORMATS["hub"](request(tmp_path, "wide_resnet28w2", 32))
