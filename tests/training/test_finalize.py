# SPDX-License-Identifier: MIT
"""What sparse training leaves: a plain network with the same features, and nothing that prunes."""

import copy

import lightning.pytorch as pl
import pytest
import torch
import torchvision
from torch import nn

import sparse_ext
from sparse_ext.config.sections import build
from sparse_ext.masks.dual_norms import make_dual
from sparse_ext.masks.encoder import Encoder
from sparse_ext.masks.living_weights import Branches, make_functional
from sparse_ext.masks.masking import patch

pytestmark = pytest.mark.unit


def plain_net():
    return torchvision.models.resnet18()


def sparse_net():
    net = patch(plain_net(), build({"name": "gmp"}))
    for module in net.modules():
        if hasattr(module, "mask"):
            module.mask.copy_(torch.rand(module.weight.shape) < 0.4)
            module.apply_mask()
    return net.eval()


X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_the_same_features_without_masks():
    net = sparse_net()
    with torch.no_grad():
        wanted = net(X)
        assert sparse_ext.finalize(net) is net
        assert torch.equal(net(X), wanted)
    assert {type(m) for m in net.modules() if isinstance(m, nn.Conv2d)} == {nn.Conv2d}
    assert {type(m) for m in net.modules() if isinstance(m, nn.Linear)} == {nn.Linear}
    assert not any(name.endswith("mask") for name, _ in net.named_buffers())


def test_a_dense_network_loads_its_state_and_it_loads_a_dense_one():
    net = sparse_ext.finalize(sparse_net())
    other = plain_net().eval()
    other.load_state_dict(net.state_dict())
    net.load_state_dict(plain_net().state_dict())  # no hook asks for masks
    assert float((other.layer1[0].conv1.weight == 0).float().mean()) == pytest.approx(0.6, abs=0.02)


def test_a_network_without_masks_is_left_as_it_is():
    net = plain_net()
    before = copy.deepcopy(net.state_dict())
    sparse_ext.finalize(net)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("evaluation", [True, False])
def test_living_weights_and_two_sets_of_norms(evaluation):
    net = sparse_net()
    branches = Branches(True, False, evaluation)
    make_functional(Encoder(net), branches)
    make_dual([net], branches)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.05)  # alive under the masks
        elif hasattr(module, "masked"):
            nn.init.normal_(module.masked.running_mean)  # the other branch has seen other values
    net.eval()
    with torch.no_grad():
        wanted = net(X)
        sparse_ext.finalize(net)
        torch.testing.assert_close(net(X), wanted, rtol=1e-5, atol=1e-6)
    assert set(net.state_dict()) == set(plain_net().state_dict())


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.backbone = torchvision.models.resnet18()


def test_nothing_prunes_a_finalized_module():
    module = Module()
    sparse_ext.sparsify(module, "gmp")
    assert len(module.configure_callbacks()) == 1
    sparse_ext.finalize(module)
    assert module.configure_callbacks() == []
    sparse_ext.sparsify(module, "gmp")  # and it may become sparse again
    assert len(module.configure_callbacks()) == 1


def test_what_is_public_is_shown():
    shown = dir(sparse_ext)
    assert {"enable", "sparsify", "finalize", "register_method", "export", "masks"} <= set(shown)
    assert all(hasattr(sparse_ext, name) for name in shown)
    assert not any(name.startswith("_") for name in shown)
