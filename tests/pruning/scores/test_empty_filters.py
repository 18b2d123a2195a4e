# SPDX-License-Identifier: MIT
"""Gradients of emptied filters under batch norm, against a network without the division."""

import pytest
import torch
from torch import nn

from sparse_ext.masks.encoder import Encoder
from sparse_ext.masks.masking import patch_named
from sparse_ext.pruning.scores.empty_filters import fair_gradients, norms_behind
from tests.export.nets import encoder as resnet

pytestmark = pytest.mark.unit
EMPTY = 2


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.head(self.relu(self.bn(self.conv(x)))).square().mean()


def trained(bias):
    torch.manual_seed(0)
    net = patch_named(Net(), ["conv", "head"]).double()
    x = torch.randn(16, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        net.bn.bias.fill_(bias)
        net.bn.weight.uniform_(0.5, 1.5)
    for _ in range(60):  # running statistics become those of this batch
        net(x)
    net.conv.mask[EMPTY] = False
    net.conv.apply_mask()
    net(x).backward()
    return net, x


def test_the_division_is_that_of_a_live_filter():
    net, x = trained(bias=0.3)
    raw = net.conv.weight.grad.abs()
    fair = fair_gradients({"conv": raw}, Encoder(net))["conv"]
    alive = [0, 1, 3]
    assert torch.equal(fair[alive], raw[alive])
    typical = net.bn.running_var[alive].median()
    # the same gradient by hand: an emptied filter whose output is divided by a live one's deviation
    w = torch.zeros(3, 3, 3, dtype=torch.float64, requires_grad=True)
    out = nn.functional.conv2d(x, w[None])
    scaled = (out - out.mean()) / (typical + net.bn.eps).sqrt() * net.bn.weight[EMPTY]
    channel = scaled + net.bn.bias[EMPTY]
    with torch.no_grad():
        others = net.relu(net.bn(net.conv(x)))
    full = torch.cat([others[:, :EMPTY], channel.relu(), others[:, EMPTY + 1 :]], dim=1)
    net.head(full).square().mean().backward()
    assert torch.allclose(fair[EMPTY], w.grad.abs(), rtol=1e-6)
    assert raw[EMPTY].max() / fair[EMPTY].max() > 100  # what it was without


def test_a_filter_behind_a_bias_of_zero_has_no_gradient_to_change():
    net, _ = trained(bias=-0.1)
    raw = net.conv.weight.grad.abs()
    assert raw[EMPTY].max() == 0
    assert torch.equal(fair_gradients({"conv": raw}, Encoder(net))["conv"], raw)


def test_layers_without_a_norm_and_layers_without_empty_filters_stay():
    net, _ = trained(bias=0.3)
    scores = {"head": torch.rand(2, 4, 1, 1)}
    assert fair_gradients(scores, Encoder(net))["head"] is scores["head"]
    net.conv.mask.fill_(True)
    scores = {"conv": torch.rand(4, 3, 3, 3)}
    assert fair_gradients(scores, Encoder(net))["conv"] is scores["conv"]


def test_the_norms_of_a_resnet():
    net = resnet(width=4)
    found = norms_behind(net)
    assert found["conv1"] is net.bn1
    assert found["layer2.0.conv2"] is net.layer2[0].bn2
    assert found["layer2.0.downsample.0"] is net.layer2[0].downsample[1]
    convolutions = [n for n, m in net.named_modules() if isinstance(m, nn.Conv2d)]
    assert sorted(found) == sorted(convolutions)
