# SPDX-License-Identifier: MIT
"""Channel gating against hand counts, closed forms and brute force (properties 40-45)."""

import math

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from solo.errors import ConfigError
from solo.utils.views import encoding
from sparse_ext.gating.config.sections import build
from sparse_ext.gating.encoder import choose, gating_of, patch, trace
from sparse_ext.gating.methods.channel.blocks import GatedBlock
from sparse_ext.gating.methods.channel.gate import ChannelGate, gumbel_sigmoid
from sparse_ext.gating.methods.channel.losses import bound_loss, budget_loss
from tests.gating.helpers import gated_encoder, plain_encoder

pytestmark = pytest.mark.unit


def floor_of(backbone, size):
    gating = gating_of(backbone)
    return gating.method.floor(trace(backbone, size), gating.layers)


@pytest.mark.parametrize(
    ("dataset", "size", "macs", "floor"),
    [
        ("cifar10", 32, 703_560_448, 0.01498),
        ("stl10", 96, 333_103_104, 0.07642),
        ("imagenet100", 224, 1_813_561_344, 0.07583),
    ],
)
def test_the_papers_macs_to_the_last_digit(dataset, size, macs, floor):
    backbone = gated_encoder(width=64, dataset=dataset)
    done = trace(backbone, size)
    assert done.macs_dense == macs
    assert sum(layer.gate_macs for layer in gating_of(backbone).layers.values()) == 240_640
    assert floor_of(backbone, size) == pytest.approx(floor, abs=5e-6)
    assert gating_of(backbone).context.tape == {}


def test_without_the_stem_both_sides_of_the_ratio_lack_it():
    stem = 34 * 34 * 27 * 64
    done = trace(gated_encoder(width=64, include_stem=False), 32)
    assert done.macs_dense == 703_560_448 - stem


def set_gates(backbone, logit):
    """All logits of all gates become `logit`."""
    for module in backbone.modules():
        if isinstance(module, ChannelGate):
            nn.init.zeros_(module.expand.weight)
            module.expand.bias = nn.Parameter(torch.full((module.expand.out_channels,), logit))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_extremes_of_rho(name):
    backbone = gated_encoder(backbone=name, gate_bias_init=0.0)
    x = torch.randn(3, 3, 32, 32)
    context = gating_of(backbone).context
    masks = sum(layer.gate_macs for layer in gating_of(backbone).layers.values())
    for logit in (-50.0, 50.0):
        set_gates(backbone, logit)
        backbone.eval()(x)
        done = context.tape[None]
        expected = floor_of(backbone, 32) if logit < 0 else 1 + masks / done.macs_dense
        assert done.rho.item() == pytest.approx(expected, rel=1e-6)
    choose(backbone, "dense")(x)
    assert context.tape[None].rho.item() == 1


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("training", [True, False])
def test_rho_by_brute_force(name, training):
    """Multiply-accumulates of each image, counted convolution by convolution from the zeros."""
    backbone = gated_encoder(backbone=name, width=8, dataset="stl10").train(training)
    counts, gates, gated_inputs, total_gates = {}, {}, set(), 0

    def count(conv, inputs, output):
        x, (h, w) = inputs[0], output.shape[2:]
        alive = (x.flatten(2) != 0).any(2).sum(1) if conv in gated_inputs else x.shape[1]
        used = gates.get(conv)
        outs = conv.out_channels if used is None else used
        area = conv.kernel_size[0] * conv.kernel_size[1] * h * w
        counts[conv] = (area * alive * outs, area * x.shape[1] * conv.out_channels)

    for block in backbone.modules():
        if isinstance(block, GatedBlock):
            convs = block.own_convs()
            gated_inputs |= set(convs[1:])
            total_gates += block.gate_macs
            for conv, gate in zip(convs, block.gates, strict=False):

                def keep(module, inputs, output, conv=conv):
                    gates[conv] = output.sum((1, 2, 3))

                getattr(block, gate).register_forward_hook(keep)
            block.relu = nn.Identity()  # zeros are those of the gates alone
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d) and type(module) is nn.Conv2d:
            module.register_forward_hook(count)
    backbone(torch.randn(5, 3, 48, 48))
    used = sum(torch.as_tensor(a).double().mean() for a, _ in counts.values()) + total_gates
    dense = sum(b for _, b in counts.values())
    done = gating_of(backbone).context.tape[None]
    assert done.macs_dense == dense
    assert done.rho.item() == pytest.approx(used.item() / dense, rel=1e-5)
    assert 0.2 < done.rho.item() < 0.95


def test_gates_in_evaluation_are_the_sign_of_the_logit():
    gate = ChannelGate(8, 6, 4, 2 / 3, None).eval()
    x = torch.randn(32, 8, 5, 5)
    assert torch.equal(gate(x), (gate.logits(x) >= 0).float())
    assert torch.equal(gate(x), gate(x))
    nn.init.zeros_(gate.expand.weight)
    assert gate(x).min() == 1  # a logit of exactly zero is open


def test_the_gate_is_the_specified_network():
    gate = ChannelGate(8, 6, 4, 2 / 3, 2.0)
    x = torch.randn(4, 8, 3, 3)
    with torch.no_grad():
        z = x.mean((2, 3)) @ gate.reduce.weight[:, :, 0, 0].T
        z = (z - z.mean(0)) / (z.var(0, unbiased=False) + gate.norm.eps).sqrt()
        expected = z.relu() @ gate.expand.weight[:, :, 0, 0].T + 2.0
    torch.testing.assert_close(gate.logits(x)[:, :, 0, 0], expected, atol=1e-5, rtol=1e-5)
    assert gate.reduce.weight.shape[0] == 2
    assert gate.macs == 8 * 2 + 2 * 6
    assert ChannelGate(8, 6, 4, 2 / 3, None).expand.bias is None


@pytest.mark.parametrize("temperature", [2 / 3, 5.0])
def test_probability_of_an_open_gate(temperature):
    for logit in (0.0, 1.5, -0.7):
        gates = gumbel_sigmoid(torch.full((100_000,), logit), temperature)
        expected = 1 / (1 + math.exp(-logit))
        assert gates.mean().item() == pytest.approx(expected, abs=0.01)


def test_straight_through():
    """Values are exactly 0 or 1; the gradient is that of the soft gate, by finite differences."""
    logits = torch.randn(500, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(1)
    gates = gumbel_sigmoid(logits, 2 / 3)
    assert set(gates.tolist()) == {0.0, 1.0}
    weights = torch.randn(500, dtype=torch.float64)
    (gates * weights).sum().backward()
    torch.manual_seed(1)
    u = torch.rand(500, dtype=torch.float64)

    def soft(a):
        return torch.sigmoid((a + torch.log(u) - torch.log(1 - u)) / (2 / 3))

    step = 1e-6
    slope = (soft(logits.detach() + step) - soft(logits.detach() - step)) / (2 * step)
    torch.testing.assert_close(logits.grad, slope * weights, atol=1e-6, rtol=1e-5)


def test_budget_loss():
    rho = torch.tensor(0.5, requires_grad=True)
    loss = budget_loss(rho, 0.3, 5.0)
    loss.backward()
    assert loss.item() == pytest.approx(0.2)
    assert rho.grad.item() == pytest.approx(2 * 5 * 0.2)


def test_bound_loss():
    def bound(rates, epoch=0, budget=0.25, gamma=1.0):
        return bound_loss([torch.tensor(r) for r in rates], budget, epoch, gamma, 0.02).item()

    assert bound([0.5, 0.5]) == 0
    assert bound([1.0, 1.0]) == pytest.approx(0.25)
    assert bound([1.0, 0.5], gamma=2.0) == pytest.approx(2 * 0.25 / 2)
    assert bound([0.0, 1.0]) == pytest.approx(0.125 + 0.125)
    p = math.exp(-0.02 * 30)
    low, high = p * 0.5, 1 - p + p * 0.5
    assert bound([low + 1e-6, high - 1e-6], epoch=30) == pytest.approx(0, abs=1e-10)
    assert bound([low - 0.1, 0.5], epoch=30) == pytest.approx(0.01 / 2, rel=1e-4)
    assert bound([0.5, high + 0.1], epoch=30) == pytest.approx(0.01 / 2, rel=1e-4)
    assert bound([0.0, 1.0], epoch=10**6) == pytest.approx(0, abs=1e-12)


def test_the_dense_branch_is_torchvisions_network():
    backbone = choose(gated_encoder("vicreg_dual", width=64, dataset="imagenet100"), "dense")
    reference = resnet18()
    reference.fc = nn.Identity()
    state = backbone.state_dict()
    reference.load_state_dict({key: state[key] for key in reference.state_dict()})
    x = torch.randn(2, 3, 40, 40)
    for net in (backbone, reference):
        net.train()
    assert torch.equal(backbone(x), reference(x))
    before = backbone.eval()(x)
    for module in backbone.modules():
        if isinstance(module, ChannelGate):
            nn.init.normal_(module.expand.weight)
    assert torch.equal(backbone(x), before)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_open_gates_change_nothing_and_closed_ones_leave_the_shortcut(name):
    backbone = gated_encoder(backbone=name, gate_bias_init=0.0).eval()
    x = torch.randn(2, 3, 16, 16)
    set_gates(backbone, 50.0)
    torch.testing.assert_close(choose(backbone, "gated")(x), choose(backbone, "dense")(x))
    set_gates(backbone, -50.0)
    with torch.no_grad():
        out = backbone.maxpool(backbone.relu(backbone.bn1(backbone.conv1(x))))
        last = "bn2_gated" if name == "resnet18" else "bn3_gated"
        for block in gating_of(backbone).layers.values():
            zero = torch.zeros_like(block.own_convs()[-1].weight[:, :1, 0, 0])[None, :, :]
            path = getattr(block, last)(zero.reshape(1, -1, 1, 1))
            short = out if block.downsample is None else block.downsample(out)
            out = torch.relu(short + path)
        torch.testing.assert_close(choose(backbone, "gated")(x), out.mean((2, 3)))


def statistics(backbone, gated):
    return {
        key: value.clone()
        for key, value in backbone.state_dict().items()
        if "running" in key and ("_gated" in key or "gate." in key) == gated
    }


def unchanged(a, b):
    return {key for key in a if torch.equal(a[key], b[key])}


def test_batch_norms_of_a_branch_see_that_branch_alone():
    backbone = gated_encoder(separate_bn=True).train()
    x = torch.randn(4, 3, 8, 8)
    gated, dense = statistics(backbone, True), statistics(backbone, False)
    with encoding(1):
        backbone(x)
    assert unchanged(gated, statistics(backbone, True)) == set(gated)
    assert unchanged(dense, statistics(backbone, False)) == set()
    dense = statistics(backbone, False)
    with encoding(0):
        backbone(x)
    assert unchanged(gated, statistics(backbone, True)) == set()
    same = unchanged(dense, statistics(backbone, False))
    assert same == {key for key in dense if ".bn" in key}  # stem and shortcuts are shared
    assert not any("_gated" in key for key in gated_encoder(separate_bn=False).state_dict())


def test_two_encoders_share_nothing():
    backbone = gated_encoder(encoders=2).eval()
    x = torch.randn(2, 3, 8, 8)
    before = choose(backbone, "dense")(x)
    for parameter in backbone.gated.parameters():
        nn.init.normal_(parameter)
    assert torch.equal(backbone(x), before)
    assert not torch.equal(choose(backbone, "gated")(x), before)
    assert set(gating_of(backbone).layers) == {
        f"gated.layer{i}.{j}" for i in range(1, 5) for j in range(2)
    }
    assert trace(backbone, 32).macs_dense == trace(gated_encoder(), 32).macs_dense


def test_what_cannot_be_gated():
    with pytest.raises(ConfigError, match=r"ConvNet has none.*resnet18"):
        patch(type("ConvNet", (nn.Sequential,), {})(nn.Conv2d(3, 4, 3)), build("vicreg_dual"))
    with pytest.raises(ConfigError, match="once only"):
        patch(gated_encoder(), build("vicreg_dual"))
    grouped = plain_encoder("resnet50")
    grouped.layer1[0].conv2 = nn.Conv2d(4, 4, 3, padding=1, groups=2)
    with pytest.raises(ConfigError, match="without groups"):
        patch(grouped, build("vicreg_gating"))
