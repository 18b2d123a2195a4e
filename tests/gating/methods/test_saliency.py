# SPDX-License-Identifier: MIT
"""FBS and DGC against single images in loops (properties 38, 39), schedules, losses, runs."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from solo.errors import ConfigError
from solo.utils.views import encoding
from sparse_ext.gating.branches import BranchContext
from sparse_ext.gating.config.sections import build
from sparse_ext.gating.encoder import gating_of, patch
from sparse_ext.gating.methods.saliency.dgc import inactive_at, split_heads
from sparse_ext.gating.methods.saliency.fbs import density_at, suppress, winners
from sparse_ext.gating.methods.saliency.parts import keep_largest
from tests.gating.helpers import assert_comes_back, assert_resumes, gated_encoder, train
from tests.methods.helpers import tiny_loaders

pytestmark = pytest.mark.unit


def alone(conv):
    """A gated convolution outside of an encoder."""
    conv.name, conv.context = "conv", BranchContext(("gated",), "gated", lambda *_: "gated")
    return conv


def fbs_conv(inputs=6, outputs=10, active=4):
    norm = nn.BatchNorm2d(outputs)
    nn.init.normal_(norm.bias)
    conv = suppress(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), norm)
    conv.active.fill_(active)
    nn.init.normal_(conv.saliency.bias, 1.0)
    nn.init.normal_(conv.norm.running_mean)
    return alone(conv)


def dgc_conv(inputs=8, outputs=12, heads=4, inactive=3):
    config = build({"name": "dgc", "heads": heads, "squeeze": 4})
    conv = split_heads(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), config)
    conv.inactive.fill_(inactive)
    nn.init.normal_(conv.fc2.bias, 0.5)
    nn.init.normal_(conv.norm.running_mean)
    return alone(conv)


def test_exactly_that_many_and_ties_by_lowest_index():
    scores = torch.tensor([[0.5, 2.0, 0.5, 0.5], [0.0, 0.0, 0.0, 0.0]])
    kept = keep_largest(scores, 2)
    assert kept.tolist() == [[True, True, False, False], [True, True, False, False]]
    same = torch.ones(3, 1000, dtype=torch.bfloat16)
    kept = keep_largest(same, torch.tensor(37))
    assert kept[:, :37].all()
    assert kept.sum() == 3 * 37
    assert not keep_largest(scores, 0).any()


# ---- FBS ----


def test_fbs_image_by_image():
    conv = fbs_conv().eval()
    x = torch.randn(3, 6, 5, 5)
    found = conv(x)
    for image, y in zip(x, found, strict=True):
        ss = image.abs().mean((1, 2))
        g = torch.relu(conv.saliency.weight[:, :, 0, 0] @ ss + conv.saliency.bias)
        winning = set(g.argsort(descending=True)[:4].tolist())
        maps = F.conv2d(image[None], conv.weight, padding=1)[0]
        for c in range(10):
            spread = (conv.norm.running_var[c] + 1e-5).sqrt()
            z = (maps[c] - conv.norm.running_mean[c]) / spread
            expected = g[c] * z + conv.beta[c] if c in winning and g[c] > 0 else 0 * z
            torch.testing.assert_close(y[c], expected, atol=1e-5, rtol=1e-4)


def test_fbs_with_unit_mean_knows_no_scale_of_saliences():
    conv = fbs_conv().eval()
    nn.init.zeros_(conv.beta)
    x = torch.randn(3, 6, 5, 5)
    plain = conv(x)
    g = torch.relu(conv.saliency(x.abs().mean((2, 3), keepdim=True)))
    mean = (g * keep_largest(g.flatten(1), 4)[:, :, None, None]).mean(1, keepdim=True)
    conv.unit_mean = True
    torch.testing.assert_close(conv(x), plain / mean)
    for part in conv.saliency.parameters():
        part.data *= 1000
    torch.testing.assert_close(conv(x), plain / mean)
    nn.init.constant_(conv.saliency.bias, -1e6)
    assert torch.equal(conv(x), torch.zeros_like(plain))  # no channel is salient


@pytest.mark.parametrize(
    ("density", "channels", "kept"), [(0.5, 7, 4), (0.7, 10, 7), (0.3, 64, 20)]
)
def test_fbs_keeps_exactly_the_share_that_is_asked_for(density, channels, kept):
    assert winners(density, channels) == kept
    conv = fbs_conv(4, channels, winners(density, channels))
    nn.init.constant_(conv.saliency.bias, 10.0)
    alive = conv(torch.randn(5, 4, 6, 6)).abs().amax((2, 3)) > 0
    assert alive.sum(1).tolist() == [kept] * 5


def test_fbs_closes_in_phases():
    config = build("fbs")
    expected = {0.0: 1.0, 0.149: 1.0, 0.15: 0.9, 0.3: 0.8, 0.59: 0.7, 0.6: 0.6, 0.75: 0.5, 1: 0.5}
    for progress, density in expected.items():
        assert density_at(config, progress) == pytest.approx(density)
    uneven = build({"name": "fbs", "density": 0.65, "settled": 1.0})
    assert [density_at(uneven, p) for p in (0.5, 0.75, 1)] == pytest.approx([0.8, 0.7, 0.65])
    backbone = gated_encoder("fbs", width=8)
    gating = gating_of(backbone)
    gating.method.advance(gating.layers, 0.15)
    active = {layer.out_channels: layer.active.item() for layer in gating.layers.values()}
    assert active == {8: 8, 16: 15, 32: 29, 64: 58}
    assert len(gating.layers) == 19


def test_fbs_gradients_stay_with_the_winners():
    conv = fbs_conv(active=4)
    x = torch.randn(1, 6, 5, 5)
    y = conv(x)
    y.square().sum().backward()
    won = y.abs().amax((0, 2, 3)) > 0
    assert torch.equal(conv.weight.grad.abs().sum((1, 2, 3)) > 0, won)
    assert torch.equal(conv.beta.grad != 0, won)
    assert torch.equal(conv.saliency.bias.grad != 0, won)


def test_fbs_counts_outputs_and_both_sides():
    backbone = gated_encoder("fbs", width=8).eval()
    gating = gating_of(backbone)
    gating.method.advance(gating.layers, 1.0)
    for layer in gating.layers.values():
        nn.init.zeros_(layer.saliency.weight)
    backbone(torch.randn(2, 3, 16, 16))
    done, means = gating.context.tape[None], gating.context.collect()
    assert means["rho_out"] == pytest.approx(0.5)
    assert means["rho_in_out/layer1.0.conv2"] == pytest.approx(0.25)
    assert means["rho_in_out/layer1.0.conv1"] == pytest.approx(0.5)  # all of the stem is in use
    dense = {name: usage.macs_dense for name, usage in done.layers.items()}
    nets = sum(layer.saliency.weight.numel() for layer in gating.layers.values())
    used = 0.5 * sum(dense.values()) + nets + sum(done.plain.values())
    assert means["macs_effective"] == pytest.approx(used, rel=1e-5)
    assert set(done.plain) == {"conv1"}


# ---- DGC ----


def test_dgc_head_by_head():
    conv = dgc_conv().eval()
    x = torch.randn(3, 8, 5, 5)
    found = conv(x)
    hidden = conv.fc1.out_channels // 4
    assert hidden == 8 // (4 // 2)
    for image, y in zip(x, found, strict=True):
        spread = (conv.norm.running_var + 1e-5).sqrt()
        z = (image - conv.norm.running_mean[:, None, None]) / spread[:, None, None]
        z = torch.relu(z * conv.norm.weight[:, None, None] + conv.norm.bias[:, None, None])
        for head in range(4):
            one = conv.fc1.weight[head * hidden : (head + 1) * hidden, :, 0, 0]
            two = conv.fc2.weight[head * 8 : (head + 1) * 8, :, 0, 0]
            s = torch.relu(two @ torch.relu(one @ z.mean((1, 2))) + conv.fc2.bias[head * 8 :][:8])
            s = s * torch.tensor(
                [c in s.argsort(descending=True, stable=True)[:5] for c in range(8)]
            )
            part = conv.weight[head * 3 : (head + 1) * 3]
            expected = F.conv2d((z * s[:, None, None])[None], part, padding=1)[0]
            torch.testing.assert_close(y[head::4], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("progress", "share"), [(0, 0), (1 / 12, 0), (5 / 12, 0.5), (0.75, 1), (1, 1)]
)
def test_dgc_leaves_channels_out_linearly(progress, share):
    config = build("dgc")
    assert inactive_at(config, progress, 64) == round(64 * 0.55 * share)
    backbone = gated_encoder("dgc", width=4)
    gating = gating_of(backbone)
    gating.method.advance(gating.layers, progress)
    for layer in gating.layers.values():
        assert layer.inactive == round(layer.in_channels * 0.55 * share)
        nn.init.constant_(layer.fc2.bias, 100.0)
    backbone.eval()(torch.randn(2, 3, 8, 8))
    for name, layer in gating.layers.items():
        x = torch.rand(3, layer.in_channels, 4, 4)
        kept = keep_largest(layer.saliences(x), layer.in_channels - layer.inactive)
        assert kept.shape == (3, 4, layer.in_channels)
        assert (kept.sum(2) == layer.in_channels - layer.inactive).all(), name


def test_dgc_with_everything_kept_is_the_convolution_in_another_order():
    conv = dgc_conv(inactive=0).eval()
    nn.init.zeros_(conv.fc2.weight)
    nn.init.ones_(conv.fc2.bias)
    x = torch.randn(2, 8, 5, 5)
    plain = F.conv2d(torch.relu(conv.norm(x)), conv.weight, padding=1)
    order = [head * 3 + c for c in range(3) for head in range(4)]
    torch.testing.assert_close(conv(x), plain[:, order], atol=1e-5, rtol=1e-4)
    assert sorted(order) == list(range(12))  # every output belongs to one head


def test_dgc_does_not_overflow_on_unusual_images():
    """Without the limit, each convolution squares what is left of an image's distance."""
    torch.manual_seed(0)
    backbone = gated_encoder("dgc", width=4)
    for _ in range(20):
        backbone(torch.randn(16, 3, 8, 8))
    features = backbone.eval()(5 * torch.randn(8, 3, 8, 8))
    assert features.isfinite().all()
    assert features.max() < 1e4


def test_dgc_keeps_the_norms_of_the_blocks():
    """39 batch norms, as in the authors' ResNet-18: the network's own 20 and one in each layer."""
    backbone = gated_encoder("dgc", width=4)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in backbone.modules()) == 39
    block, x = backbone.layer2[0], torch.randn(2, 4, 8, 8)
    hidden = torch.relu(block.bn1(block.conv1(x)))
    straight, shortcut = block.bn2(block.conv2(hidden)), block.downsample(x)
    torch.testing.assert_close(block(x), torch.relu(straight + shortcut))
    assert isinstance(block.downsample[1], nn.BatchNorm2d)


def test_dgc_without_them_normalises_before_it_convolves():
    backbone = gated_encoder("dgc", width=4, block_norms=False)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in backbone.modules()) == 21
    assert len(gating_of(backbone).layers) == 19
    block = backbone.layer2[0]
    seen = []
    for name in ("conv1", "conv2"):
        block.get_submodule(name).register_forward_hook(lambda *args: seen.append(args[2].clone()))
    x = torch.randn(2, 4, 8, 8)
    out = block(x)
    torch.testing.assert_close(out, seen[1] + block.downsample[0](x))  # no ReLU behind the sum
    assert torch.equal(block.conv2(seen[0]), seen[1])
    assert isinstance(backbone.layer4.norm[0], nn.BatchNorm2d)
    assert backbone(torch.randn(2, 3, 8, 8)).min() >= 0


# ---- both ----


@pytest.mark.parametrize(("name", "weight"), [("fbs", {"lamb": 0.1}), ("dgc", {"lasso": 0.1})])
def test_the_loss_is_the_size_of_the_saliences(name, weight):
    backbone = gated_encoder(name, **weight).train()
    gating, found = gating_of(backbone), []
    for layer in gating.layers.values():
        net = layer.saliency if name == "fbs" else layer.fc2
        net.register_forward_hook(lambda *args: found.append(torch.relu(args[2]).detach()))
    for index in (0, 1):
        with encoding(index):
            backbone(torch.randn(2, 3, 8, 8))
    loss = gating.method.losses(gating, None, [])["saliency_loss"]
    if name == "fbs":  # L1 norm per image
        expected = sum(g.sum() / 2 for g in found)
    else:  # mean per head
        expected = sum(s.unflatten(1, (4, -1)).mean((0, 2, 3, 4)).sum() for s in found)
    assert len(found) == 38
    torch.testing.assert_close(loss, 0.1 * expected)
    loss.backward()
    assert all(p.grad is not None for p in gating.method.gate_parameters(backbone))


@pytest.mark.parametrize("name", ["fbs", "dgc"])
@pytest.mark.parametrize("ssl", ["simclr", "simsiam", "mocov2plus"])
def test_methods_train(name, ssl):
    model, run = train(ssl, name, epochs=2, loaders=tiny_loaders(steps=2))
    metrics = run.callback_metrics
    assert metrics["gating/rho"] > 0
    assert 0 < metrics["gating/val_rho"] < 1
    assert "gating/saliency_loss_epoch" in metrics
    groups = {group["name"]: group for group in model.learnable_params}
    assert groups["backbone_gates"]["weight_decay"] == 0
    layer = model.backbone.layer4[1].conv2  # three of four steps were taken before the last one
    state = layer.active if name == "fbs" else layer.inactive
    assert state == (16 if name == "fbs" else round(32 * 0.55))
    if ssl == "mocov2plus":
        other = model.momentum_backbone.layer4[1].conv2
        assert state == (other.active if name == "fbs" else other.inactive)


@pytest.mark.parametrize("name", ["fbs", "dgc"])
def test_resume(name, tmp_path):
    assert_resumes("simclr", name, tmp_path / "a.ckpt")


@pytest.mark.parametrize("name", ["fbs", "dgc"])
def test_weights_alone_bring_it_back(name):
    backbone = gated_encoder(name)
    gating = gating_of(backbone)
    gating.method.advance(gating.layers, 1.0)
    assert_comes_back(backbone)


@pytest.mark.parametrize("name", ["fbs", "dgc"])
def test_bf16_ranks_in_float32_and_channels_last_changes_nothing(name):
    conv = (fbs_conv if name == "fbs" else dgc_conv)().eval()
    x = torch.randn(2, conv.in_channels, 5, 5)
    expected = conv(x)
    torch.testing.assert_close(conv(x.to(memory_format=torch.channels_last)), expected)
    seen = []
    net = conv.saliency if name == "fbs" else conv.fc2
    net.register_forward_hook(lambda *args: seen.append(args[2].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        half = conv(x)
    assert (half.dtype, seen) == (torch.bfloat16, [torch.float32])
    torch.testing.assert_close(half.float(), expected, atol=0.1, rtol=0.05)
    model, _ = train("simclr", name, precision="bf16-mixed")
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"name": "fbs", "density": 0}, r"gating\.density=0.* must be above 0"),
        ({"name": "fbs", "lamb": -1}, "must not be negative"),
        ({"name": "fbs", "groups": 4}, r"Unknown key gating\.groups"),
        ({"name": "dgc", "gate_factor": 1.5}, r"gating\.gate_factor=1\.5"),
        ({"name": "dgc", "start": 0.8}, "the first below the second"),
        ({"name": "dgc", "heads": 0}, "at least 1"),
    ],
)
def test_mistakes(section, message):
    with pytest.raises(ConfigError, match=message):
        build(section)


def test_encoders_that_do_not_fit():
    with pytest.raises(ConfigError, match=r"gating\.heads=3 does not divide the 4 output channels"):
        gated_encoder("dgc", heads=3)
    for name in ("fbs", "dgc"):
        with pytest.raises(ConfigError, match=rf"gating={name} .*Sequential has none"):
            patch(nn.Sequential(nn.Conv2d(3, 4, 3)), build(name))
