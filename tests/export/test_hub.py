# SPDX-License-Identifier: MIT
"""Folders that timm loads: the same features, an honest card, named refusals."""

import json

import pytest
import timm
import torch
from omegaconf import OmegaConf

from solo.backbones import build_encoder
from solo.errors import CheckpointError
from sparse_ext.export.formats import FORMATS, Request
from sparse_ext.masks.masked_layers import masked_layers
from sparse_ext.masks.masking import patch_named


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


def test_encoders_without_a_counterpart_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"not laid out like timm's resnet18 .*3x3 stem"):
        FORMATS["hub"](request(tmp_path, "resnet18", 32, "cifar10"))
    assert not (tmp_path / "hub").exists()
    with pytest.raises(CheckpointError, match=r"does not take backbone\.kwargs=.*width"):
        FORMATS["hub"](request(tmp_path, "resnet18", 32, width=8))
    with pytest.raises(CheckpointError, match="wide_resnet28w2 has no counterpart in timm"):
        FORMATS["hub"](request(tmp_path, "wide_resnet28w2", 32))
