# SPDX-License-Identifier: MIT
"""Masked layers: same keys, dense forward, dense gradients."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F

from solo.errors import ConfigError
from sparse_ext.masks.masked_layers import Masked, MaskedConv2d, MaskedLinear, mask_module

pytestmark = pytest.mark.unit


def test_class_swap_keeps_object_weight_and_keys():
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
    weight, keys = conv.weight, set(conv.state_dict())
    masked = mask_module(conv)
    assert masked is conv
    assert type(masked) is MaskedConv2d
    assert masked.weight is weight
    assert isinstance(masked, (nn.Conv2d, Masked))
    assert set(masked.state_dict()) == keys | {"mask"}
    assert masked.mask.dtype is torch.bool
    assert masked.mask.all()
    assert type(mask_module(nn.Linear(3, 2))) is MaskedLinear


def test_mask_has_the_weights_memory_format():
    conv = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    assert mask_module(conv).mask.is_contiguous(memory_format=torch.channels_last)
    late = mask_module(nn.Conv2d(4, 6, 3)).to(memory_format=torch.channels_last)
    assert late.mask.is_contiguous(memory_format=torch.channels_last)


def test_forward_is_the_dense_layers_own():
    conv, x = nn.Conv2d(3, 5, 3), torch.randn(2, 3, 8, 8)
    expected = conv(x)
    assert torch.equal(mask_module(conv)(x), expected)


def test_apply_mask_stores_exact_zeros():
    layer = mask_module(nn.Linear(8, 8))
    layer.mask.copy_(torch.rand(8, 8) < 0.5)
    layer.weight.data[~layer.mask] = float("nan")
    kept = layer.weight[layer.mask].clone()
    layer.apply_mask()
    assert not layer.weight[~layer.mask].any()
    assert torch.equal(layer.weight[layer.mask], kept)
    assert layer.weight.requires_grad


@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_pruned_positions_get_the_dense_gradient(kind):
    layer = nn.Conv2d(3, 4, 3) if kind == "conv" else nn.Linear(6, 5)
    x = torch.randn(4, 3, 7, 7) if kind == "conv" else torch.randn(9, 6)
    layer, x = mask_module(layer).double(), x.double()
    layer.mask.copy_(torch.rand(layer.weight.shape) < 0.3)
    layer.apply_mask()

    def loss(weight):
        call = F.conv2d if kind == "conv" else F.linear
        return call(x, weight, layer.bias).tanh().square().mean()

    layer(x).tanh().square().mean().backward()
    pruned = (~layer.mask).nonzero().tolist()
    gradient = layer.weight.grad[~layer.mask]
    assert (gradient != 0).double().mean() >= 0.99
    step = 1e-5
    for index, got in zip(pruned[:20], gradient[:20].tolist(), strict=True):
        up, down = layer.weight.detach().clone(), layer.weight.detach().clone()
        up[tuple(index)] += step
        down[tuple(index)] -= step
        assert got == pytest.approx(
            ((loss(up) - loss(down)) / (2 * step)).item(), rel=1e-3, abs=1e-9
        )


def test_mask_travels_with_the_state_dict():
    source, target = (mask_module(nn.Linear(4, 4)) for _ in range(2))
    source.mask.copy_(torch.eye(4).bool())
    target.load_state_dict(source.state_dict())
    assert torch.equal(target.mask, torch.eye(4).bool())
    with pytest.raises(RuntimeError, match="mask"):
        target.load_state_dict(nn.Linear(4, 4).state_dict())
    with pytest.raises(RuntimeError, match="mask"):
        nn.Linear(4, 4).load_state_dict(source.state_dict())


def test_copies_and_pickles():
    layer = mask_module(nn.Linear(4, 4))
    layer.mask[0] = False
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(twin) is MaskedLinear
        assert torch.equal(twin.mask, layer.mask)
        assert twin.mask is not layer.mask
    assert "density=0.7500" in repr(layer)


def test_only_exact_types_once():
    class Standardised(nn.Conv2d):
        """Stands for layers that compute their weight."""

    with pytest.raises(ConfigError, match="Cannot mask a Standardised: only plain Conv2d"):
        mask_module(Standardised(3, 3, 3))
    with pytest.raises(ConfigError, match="BatchNorm2d"):
        mask_module(nn.BatchNorm2d(3))
    with pytest.raises(ConfigError, match="has a mask already"):
        mask_module(mask_module(nn.Linear(2, 2)))


def test_a_mask_changed_in_place_does_not_recompile():
    counter = CompileCounter()
    layer, x = mask_module(nn.Linear(4, 4)), torch.randn(2, 4)
    compiled = torch.compile(layer, backend=counter)
    for row in range(3):
        assert torch.equal(compiled(x), F.linear(x, layer.weight, layer.bias))
        layer.mask[row] = False
        layer.apply_mask()
    assert counter.frame_count == 1
