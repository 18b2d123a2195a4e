# SPDX-License-Identifier: MIT
"""Every family of encoders: which layers are prunable, a masked forward pass, counted MACs."""

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from solo.backbones import build_encoder
from sparse_ext.config.sections import build
from sparse_ext.cost import count
from sparse_ext.extension import register
from sparse_ext.masks.encoder import Encoder
from sparse_ext.masks.masking import patch, selection

pytestmark = pytest.mark.unit

VIT = {"embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": 16, "patch_size": 4}
CONVNEXT = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}
TABLE = "layers.0.blocks.0.attn.relative_position_bias_table"

# name: options, image side, stem, layers that are prunable, what stays dense beside the stem
FAMILIES = {
    "resnet18": ({"width": 4}, 16, "conv1", ["layer2.0.downsample.0", "layer1.0.conv1"], []),
    "resnet50": ({"width": 4}, 16, "conv1", ["layer1.0.downsample.0", "layer4.2.conv3"], []),
    "wide_resnet28w2": ({}, 8, None, [], []),
    "convnext_tiny": (
        *(CONVNEXT, 32, "stem.0"),
        *(["stages.0.blocks.0.conv_dw", "stages.1.downsample.1", "stages.0.blocks.0.mlp.fc1"], []),
    ),
    "vit_tiny": (
        *(VIT, 16, "patch_embed.proj", ["blocks.0.attn.qkv", "blocks.1.attn.proj"]),
        ["cls_token", "pos_embed"],
    ),
    "swin_tiny": (
        *({"img_size": 64, "window_size": 2, "embed_dim": 32, "depths": (1, 1, 1, 1)}, 64),
        *("patch_embed.proj", ["layers.0.blocks.0.attn.qkv", "layers.1.downsample.reduction"]),
        [TABLE],
    ),
    "poolformer_s12": ({}, 32, None, [], []),
}


@pytest.fixture(params=FAMILIES)
def family(request):
    options, side, *expected = FAMILIES[request.param]
    register()
    cfg = {
        "method": "byol",
        "backbone": {"name": request.param, "kwargs": options},
        "data": {"dataset": "cifar10" if request.param.startswith("resnet") else "custom"},
    }
    torch.manual_seed(0)
    return build_encoder(OmegaConf.create(cfg)), side, *expected


def test_rules_masks_and_costs(family):
    net, side, stem, prunable, dense = family
    config = build({"name": "gmp", "final": 0.5})
    chosen = selection(net, config)
    first = next(n for n, m in net.named_modules() if isinstance(m, nn.Conv2d))
    assert chosen.dense[first] == "stem"
    assert stem in (None, first)
    assert set(prunable) <= set(chosen.layers)
    assert set(dense) <= set(chosen.dense)
    weighted = {n for n, m in net.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    assert set(chosen.layers) == weighted - {first}  # these encoders have no classifier
    for name in chosen.dense:
        assert name in chosen.describe()
    reference = macs_by_torch(net, side)
    patch(net, config)
    encoder = Encoder(net)
    for mask in encoder.masks.values():
        mask.view(-1)[::2] = False
    encoder.project()
    table = count(net, side)
    assert table.macs_dense == reference
    macs = {x.name: x.macs_dense for x in table.layers}
    pruned = sum(
        macs[n] * (1 - float(m.float().mean())) for n, m in encoder.masks.items() if n in macs
    )
    assert table.macs_effective == pytest.approx(table.macs_dense - pruned)
    assert table.prunable.parameters == sum(m.numel() for m in encoder.masks.values())
    with torch.no_grad():
        features = net.eval()(torch.randn(2, 3, side, side))
    assert features.isfinite().all()


def macs_by_torch(net, side):
    """As torch counts them with attention as plain products."""
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        net.eval()(torch.zeros(1, 3, side, side))
    return counter.get_total_flops() // 2


def test_products_of_attention_are_counted_once():
    register()
    cfg = {"method": "byol", "backbone": {"name": "vit_tiny", "kwargs": VIT}}
    table = count(build_encoder(OmegaConf.create(cfg | {"data": {"dataset": "custom"}})), 16)
    tokens = (16 // 4) ** 2 + 1
    assert table.other_macs == 2 * 2 * tokens * tokens * 16  # two blocks, two products each
    macs = {x.name: x.macs_dense for x in table.layers}
    assert macs["blocks.0.attn.qkv"] == tokens * 16 * 48


def test_depthwise_and_odd_layers_stay_dense_in_groups():
    register()
    options = CONVNEXT | {"dims": (8, 12, 16, 16)}
    cfg = {"method": "byol", "backbone": {"name": "convnext_tiny", "kwargs": options}}
    net = build_encoder(OmegaConf.create(cfg | {"data": {"dataset": "custom"}}))
    nm = selection(net, build({"name": "synccp", "granularity": "2:4"}))
    assert "stages.0.blocks.0.conv_dw" in nm.dense
    assert "stages.1.blocks.0.mlp.fc1" in nm.layers  # 12 inputs
    blocks = selection(net, build({"name": "synccp", "granularity": "block8"}))
    assert "stages.1.blocks.0.mlp.fc1" in blocks.dense  # 12 is no multiple of 8
    assert "stages.2.blocks.0.mlp.fc1" in blocks.layers
    for name, why in (nm.dense | blocks.dense).items():
        assert why, name


def test_attention_of_torch_keeps_its_input_projections_dense_and_says_so():
    net = nn.Sequential(nn.Linear(8, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
    chosen = selection(net, build("gmp"))
    assert "no weight of a convolution" in chosen.dense["1.self_attn.in_proj_weight"]
    assert {"1.self_attn.out_proj", "1.linear1", "1.linear2"} <= set(chosen.layers)
