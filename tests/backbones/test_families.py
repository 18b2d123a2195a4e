# SPDX-License-Identifier: MIT
"""Encoders beyond the ResNets: what they compute, how they start, which options they take."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf

from solo.backbones import BACKBONES, build_encoder, features_dim, get_builder
from solo.errors import ConfigError

pytestmark = pytest.mark.unit

TINY_VIT = {"embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": 16, "patch_size": 4}


def build(name, method=None, **kwargs):
    torch.manual_seed(1)
    return BACKBONES[name](method, **kwargs)


@pytest.mark.parametrize(
    ("name", "method", "kwargs", "size"),
    [
        ("wide_resnet28w2", None, {}, 16),
        ("poolformer_s12", None, {}, 64),
        ("convnext_tiny", None, {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)}, 32),
        ("swin_tiny", None, {"img_size": 64, "window_size": 2}, 64),
        ("vit_tiny", None, TINY_VIT, 16),
        ("vit_tiny", "mocov3", TINY_VIT, 16),
        ("vit_tiny", "mae", TINY_VIT, 16),
    ],
)
def test_output_is_batch_by_features(name, method, kwargs, size):
    net = build(name, method, **kwargs)
    out = net(torch.randn(2, 3, size, size))
    assert out.shape == (2, features_dim(net))
    out.sum().backward()
    # DDP without find_unused_parameters needs a gradient for every trainable parameter
    assert [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None] == []


def test_method_is_a_keyword_too():
    assert features_dim(BACKBONES["vit_tiny"](method="mae", **TINY_VIT)) == 16
    assert BACKBONES["swin_tiny"]("byol", 2, img_size=64).layers[0].blocks[0].window_size == (2, 2)


# -- wide resnet ---------------------------------------------------------------------------------


def reference_wide_block(block, x, project, activate_first):
    act = lambda norm, t: F.leaky_relu(norm(t), 0.1)  # noqa: E731
    if not project:
        return x + block.conv2(act(block.bn2, block.conv1(act(block.bn1, x))))
    x = act(block.bn1, x) if activate_first else x
    return block.convShortcut(x) + block.conv2(act(block.bn2, block.conv1(x)))


def test_wide_resnet_computes_solo_learns_function():
    net = build("wide_resnet28w2").eval()
    x = torch.randn(2, 3, 8, 8)
    out = net.conv1(x)
    for i, stage in enumerate((net.block1, net.block2, net.block3)):
        for j, block in enumerate(stage.layer):
            out = reference_wide_block(block, out, j == 0, i == 0)
    out = F.leaky_relu(net.bn1(out), 0.1).mean((2, 3))
    torch.testing.assert_close(net(x), out)
    assert net.bn1.eps == net.bn1.momentum == 1e-3
    weight = net.block3.layer[1].conv1.weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (128 * 9)), rel=0.02)


# -- poolformer ----------------------------------------------------------------------------------


def test_poolformer_block_by_hand():
    from solo.backbones.poolformer.poolformer import LayerNormChannel, PoolFormerBlock

    block = PoolFormerBlock(4, layer_scale_init_value=0.5).double()
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)

    def norm(t):
        mean = t.mean((1, 2, 3), keepdim=True)
        return (t - mean) / (t.var((1, 2, 3), keepdim=True, correction=0) + 1e-5).sqrt()

    ones = torch.ones(1, 1, 3, 3, dtype=torch.float64)
    y = norm(x).reshape(8, 1, 5, 5)
    counts = F.conv2d(torch.ones_like(y), ones, padding=1)
    pooled = (F.conv2d(y, ones, padding=1) / counts - y).reshape(x.shape)
    x1 = x + 0.5 * pooled
    hidden = F.gelu(torch.einsum("oi,nihw->nohw", block.mlp.fc1.weight[..., 0, 0], norm(x1)))
    expected = x1 + 0.5 * torch.einsum("oi,nihw->nohw", block.mlp.fc2.weight[..., 0, 0], hidden)
    torch.testing.assert_close(block(x), expected)
    channel_norm = LayerNormChannel(4).double()(x)
    torch.testing.assert_close(
        channel_norm, F.layer_norm(x.permute(0, 2, 3, 1), (4,)).permute(0, 3, 1, 2)
    )


def test_poolformer_drop_path_grows_over_all_blocks():
    net = build("poolformer_s12", drop_path_rate=0.11)
    rates = [
        getattr(block.drop_path, "p", 0.0) for stage in list(net.network)[::2] for block in stage
    ]
    np.testing.assert_allclose(rates, np.linspace(0, 0.11, 12), atol=1e-12)
    assert build("poolformer_s36").network[0][0].layer_scale_1[0].item() == pytest.approx(1e-6)
    assert build("poolformer_s24").network[0][0].layer_scale_1[0].item() == pytest.approx(1e-5)


# -- vision transformers -------------------------------------------------------------------------


def sincos_1d(position, features):
    omega = 1 / 10000 ** (np.arange(features // 2) / (features // 2))
    return [*np.sin(position * omega), *np.cos(position * omega)]


def test_positions_of_moco_and_mae():
    # a grid that is not square shows which coordinate comes first
    kwargs = {**TINY_VIT, "img_size": (8, 16)}
    moco, mae = build("vit_tiny", "mocov3", **kwargs), build("vit_tiny", "mae", **kwargs)
    by_w = [sincos_1d(w, 8) + sincos_1d(h, 8) for w in range(4) for h in range(2)]
    by_h = [sincos_1d(w, 8) + sincos_1d(h, 8) for h in range(2) for w in range(4)]
    for net, rows in ((moco, by_w), (mae, by_h)):
        expected = np.array([[0] * 16, *rows])[None]
        np.testing.assert_allclose(net.pos_embed.numpy(), expected, atol=1e-6)
        assert not net.pos_embed.requires_grad


def test_moco_initialisation():
    net = build("vit_small", "mocov3", depth=1)
    block = net.blocks[0]
    patch = net.patch_embed.proj
    for weight, bound in (
        (block.attn.qkv.weight, math.sqrt(6 / (384 + 384))),
        (block.attn.proj.weight, math.sqrt(6 / (384 + 384))),
        (block.mlp.fc1.weight, math.sqrt(6 / (384 + 1536))),
        (patch.weight, math.sqrt(6 / (3 * 256 + 384))),
    ):
        assert 0.99 * bound < weight.abs().max().item() <= bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert not any(m.bias.any() for m in (block.attn.qkv, block.mlp.fc2, patch))
    assert 0 < net.cls_token.abs().max() < 1e-5
    assert block.norm1.eps == net.norm.eps == 1e-6


def test_mae_initialisation():
    net = build("vit_small", "mae", depth=1)
    bound = math.sqrt(6 / (3 * 256 + 384))
    assert 0.99 * bound < net.patch_embed.proj.weight.abs().max().item() <= bound
    # unlike MoCo v3, qkv is one matrix here
    bound = math.sqrt(6 / (384 * 4))
    assert 0.99 * bound < net.blocks[0].attn.qkv.weight.abs().max().item() <= bound
    assert net.cls_token.std().item() == pytest.approx(0.02, rel=0.15)
    assert net.norm.eps == 1e-6


def test_mae_random_masking():
    net = build("vit_tiny", "mae", **TINY_VIT)
    tokens = torch.arange(10.0)[None, :, None].expand(5, -1, 3)
    kept, mask, restore = net.random_masking(tokens, 0.75)
    assert kept.shape == (5, 2, 3)  # int(10 * 0.25)
    assert mask.sum(1).tolist() == [8.0] * 5
    for i in range(5):
        visible = (mask[i] == 0).nonzero().flatten().tolist()
        assert sorted(kept[i, :, 0].int().tolist()) == visible
        both = torch.cat([kept[i, :, 0], torch.full((8,), -1.0)])[restore[i]]
        assert both[visible].tolist() == [float(v) for v in visible]
        assert (both[mask[i].bool()] == -1).all()
    assert len({tuple(row.tolist()) for row in mask}) > 1  # each sample has its own


def test_mae_forward_with_and_without_masking():
    net = build("vit_tiny", "mae", **TINY_VIT)
    x = torch.randn(2, 3, 16, 16)
    features, tokens, mask, restore = net(x, 0.75)
    assert features.shape == (2, 16)
    assert tokens.shape == (2, 5, 16)
    assert mask.shape == restore.shape == (2, 16)
    torch.testing.assert_close(features, tokens[:, 0])
    state = torch.get_rng_state()
    whole = net(x)
    assert torch.equal(state, torch.get_rng_state())
    plain = build("vit_tiny", None, **TINY_VIT)
    plain.load_state_dict(net.state_dict())
    torch.testing.assert_close(whole, plain(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", [None, "mocov3", "mae"])
def test_drop_path_acts(method):
    net = build("vit_tiny", method, **TINY_VIT, drop_path_rate=0.5).train()
    assert [getattr(b.drop_path1, "drop_prob", 0.0) for b in net.blocks] == [0.0, 0.5]
    x = torch.randn(1, 3, 16, 16).expand(32, -1, -1, -1)
    assert net(x).std(dim=0).max() > 1e-3
    assert net.eval()(x).std(dim=0).max() < 1e-5


# -- options and names ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "method", "key", "near"),
    [
        ("vit_tiny", None, "patch_sise", "patch_size"),
        ("vit_tiny", "mae", "drop_path", "drop_path_rate"),
        ("vit_tiny", "mocov3", "imgsize", "img_size"),
        ("swin_tiny", None, "windowsize", "window_size"),
        ("convnext_tiny", None, "drop_path_rat", "drop_path_rate"),
        ("poolformer_s12", None, "mlp_ratio", "mlp_ratios"),
        ("wide_resnet28w2", None, "droprate", "drop_rate"),
    ],
)
def test_unknown_option_names_the_nearest(name, method, key, near):
    with pytest.raises(ConfigError, match=rf"backbone\.kwargs\.{key}: '{name}'.*'{near}'"):
        BACKBONES[name](method, **{key: 1})


def cfg(name, **kwargs):
    return OmegaConf.create(
        {
            "method": "simclr",
            "backbone": {"name": name, "kwargs": kwargs},
            "data": {"dataset": "cifar10"},
        }
    )


def test_any_timm_model_by_name():
    net = build_encoder(cfg("mobilenetv3_small_050"))
    x = torch.randn(2, 3, 32, 32)
    assert net.eval()(x).shape == (2, features_dim(net)) == (2, 1024)
    net = build_encoder(cfg("resnet26", channels=(4, 4, 4, 4), stem_width=4))
    assert net.conv1.kernel_size == (3, 3)
    assert net(x).shape == (2, features_dim(net))


def test_errors_for_timm_models():
    with pytest.raises(ConfigError, match=r"no encoder 'mobilenetv3_smal_050'.*mobilenetv3_small"):
        get_builder("mobilenetv3_smal_050")
    with pytest.raises(ConfigError, match=r"no encoder 'qqqq'.*or any model of timm\.list_models"):
        get_builder("qqqq")
    with pytest.raises(ConfigError, match=r"drop_path_rat: timm's 'vit_tiny_patch16_224'.*_rate'"):
        build_encoder(cfg("vit_tiny_patch16_224", drop_path_rat=0.1))


def test_depth_of_wide_resnet():
    from solo.backbones.wide_resnet.wide_resnet import WideResNet

    with pytest.raises(ConfigError, match="depth=27"):
        WideResNet(depth=27)


def test_extensions_patch_what_is_built(monkeypatch):
    from solo import extensions

    class Wrap(extensions.Extension):
        sections = ("wrap",)

        def patch_backbone(self, backbone, cfg):
            backbone.patched = cfg.wrap
            return backbone

    monkeypatch.setattr(extensions, "_EXTENSIONS", {})
    monkeypatch.setattr(extensions, "_discovered", True)
    extensions.register(Wrap())
    config = cfg("resnet18", width=4)
    assert not hasattr(build_encoder(config), "patched")
    config.wrap = "yes"
    assert build_encoder(config).patched == "yes"


def test_modules_are_attributes_without_an_import_of_their_own():
    code = (
        "import solo; b = solo.backbones; print(b.vit.vit_mae.vit_huge, b.resnet.resnet.resnet18)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    from solo.backbones import vit

    with pytest.raises(AttributeError, match=r"'solo.backbones.vit' has no attribute 'vit_mea'"):
        _ = vit.vit_mea
