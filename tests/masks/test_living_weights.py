# SPDX-License-Identifier: MIT
"""Masked forward passes of living weights, double batch norms, and who refuses them."""

import pytest
import torch
from torch import nn

from solo.errors import ConfigError
from solo.utils.views import encoding
from sparse_ext import sparsify
from sparse_ext.config.sections import build
from sparse_ext.masks.dual_norms import DualBatchNorm1d, make_dual
from sparse_ext.masks.encoder import Encoder
from sparse_ext.masks.living_weights import ALWAYS, Branches, branch, make_functional
from sparse_ext.masks.masking import patch
from tests.pruning.toys import data, toy, trainer

pytestmark = pytest.mark.unit

FIRST_DENSE = Branches(first=False, others=True, evaluation=False)


def two_layers():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5)).double()
    patch(net, build({"name": "gmp", "stem_dense": False}))
    g = torch.Generator().manual_seed(0)
    for layer in (net[0], net[3]):
        layer.mask.copy_(torch.rand(layer.mask.shape, generator=g) < 0.5)
    return net


def test_branches_follow_the_announced_view():
    net = two_layers()
    encoder = make_functional(Encoder(net), FIRST_DENSE)
    x = torch.randn(2, 3, 4, 4).double()
    dense = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5)).double()
    outs = {}
    for name in ("dense", "masked"):
        for mine, other in zip((dense[0], dense[3]), (net[0], net[3]), strict=True):
            keep = other.mask if name == "masked" else torch.ones_like(other.mask)
            mine.weight.data.copy_(other.weight * keep)
            mine.bias.data.copy_(other.bias)
        outs[name] = dense(x)
    with encoding(0):
        assert torch.equal(net(x), outs["dense"])
    for index in (1, 2):
        with encoding(index):
            assert torch.equal(net(x), outs["masked"])
    net.eval()
    assert torch.equal(net(x), outs["dense"])
    with branch(masked=True):
        assert torch.equal(net(x), outs["masked"])
    with pytest.raises(ConfigError, match=r"does not say which view.*encoding\(index\)"):
        net.train()(x)
    assert net[0].weight[~net[0].mask].all()
    encoder.project()
    encoder.mask_gradients()
    assert net[0].weight[~net[0].mask].all()


def test_one_pass_gives_the_gradients_of_two():
    """Property 28: the masked branch gives none to pruned weights, the dense one does."""
    net = two_layers()
    make_functional(Encoder(net), FIRST_DENSE)
    x = torch.randn(6, 3, 4, 4).double()

    def outs():
        with encoding(0):
            a = net(x[:3])
        with encoding(1):
            return a, net(x[3:])

    def grads(loss):
        return torch.autograd.grad(loss, net[3].weight)[0]

    a, b = outs()
    both = grads((a - b).square().sum())
    a, b = outs()
    dense = grads((a - b.detach()).square().sum())
    a, b = outs()
    masked = grads((a.detach() - b).square().sum())
    torch.testing.assert_close(both, dense + masked, rtol=0, atol=1e-6)
    off = ~net[3].mask
    assert not masked[off].any()
    assert (dense[off] != 0).any()


def test_dual_norms_keep_two_sets():
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    assert make_dual([net], FIRST_DENSE) == 1
    assert make_dual([net], FIRST_DENSE) == 1
    assert type(net[1]) is DualBatchNorm1d
    assert type(net[1].masked) is nn.BatchNorm1d
    x = torch.randn(8, 4)
    for index, norm in ((0, net[1]), (1, net[1].masked)):
        before = {k: v.clone() for k, v in net.state_dict().items()}
        with encoding(index):
            net(x)
        changed = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
        prefix = "1." if norm is net[1] else "1.masked."
        assert changed == {
            prefix + k for k in ("running_mean", "running_var", "num_batches_tracked")
        }
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    assert type(synced[1]) is nn.SyncBatchNorm
    make_dual([synced], FIRST_DENSE)
    assert type(synced[1]).__name__ == "DualSyncBatchNorm"
    assert type(synced[1].masked) is nn.SyncBatchNorm

    class Strange(nn.BatchNorm2d):
        pass

    with pytest.raises(ConfigError, match=r"a Strange is none.*sparse\.dual_bn=false"):
        make_dual([nn.Sequential(Strange(3))], FIRST_DENSE)


def test_straight_through_gradients():
    net = two_layers()
    make_functional(Encoder(net), ALWAYS, straight=True)
    x = torch.randn(3, 3, 4, 4).double()
    net(x).square().sum().backward()
    plain = two_layers()
    plain.load_state_dict(net.state_dict(), strict=False)
    for layer in (plain[0], plain[3]):
        layer.apply_mask()
    plain(x).square().sum().backward()
    for mine, other in ((net[0], plain[0]), (net[3], plain[3])):
        torch.testing.assert_close(mine.weight.grad, other.weight.grad)
        assert mine.weight.grad[~mine.mask].any()


# -- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("momentum", "section", "message"),
    [
        (True, "sdclr", r"methods with one encoder.*\+sparse=sd"),
        (False, {"name": "sd", "reverse": True}, r"Toy has none\. Leave sparse\.reverse out"),
        (False, "mcp", "prunes the momentum encoder, and Toy has none"),
    ],
)
def test_methods_on_the_wrong_kind_of_encoder(momentum, section, message):
    model = toy(momentum=momentum)
    sparsify(model, section)
    with pytest.raises(ConfigError, match=message):
        trainer().fit(model, data())


def test_views_that_nobody_announces():
    model = toy(momentum=False)
    sparsify(model, "sdclr")
    with pytest.raises(ConfigError, match="does not say which view"):
        trainer().fit(model, data())
