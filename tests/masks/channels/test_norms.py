# SPDX-License-Identifier: MIT
"""Norms over the channels that are left equal those of the full network on zeros."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.layers.grn import GlobalResponseNorm
from torch import Tensor, nn

from sparse_ext.masks.channels.norms import correct

FULL, LEFT = 12, 5
NORMS = {
    "layer": (lambda n: nn.LayerNorm(n), (7, 3, LEFT), -1),
    "layer, no bias": (lambda n: nn.LayerNorm(n, bias=False), (7, LEFT), -1),
    "layer, no weight": (lambda n: nn.LayerNorm(n, elementwise_affine=False), (7, LEFT), -1),
    "group": (lambda n: nn.GroupNorm(1, n), (6, LEFT, 4, 3), 1),
    "group, no weight": (lambda n: nn.GroupNorm(1, n, affine=False), (6, LEFT, 4), 1),
    "response": (lambda n: GlobalResponseNorm(n, channels_last=False), (6, LEFT, 4, 3), 1),
}


def pair(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module, Tensor]:
    """A norm over all channels, the same over those that are left, and input of the latter."""
    make, shape, _ = NORMS[name]
    torch.manual_seed(3)
    whole = make(FULL).to(dtype)
    for parameter in whole.parameters():
        nn.init.normal_(parameter)
    slim = copy.deepcopy(whole)
    for key, parameter in slim.named_parameters():
        setattr(slim, key, nn.Parameter(parameter.detach()[:LEFT].clone()))
    size = {"num_channels": LEFT} if isinstance(slim, nn.GroupNorm) else {}
    for key, value in (size or {"normalized_shape": (LEFT,)}).items():
        setattr(slim, key, value)
    correct(slim, {"full": FULL, "axis": -1})
    return whole, slim, (3 * torch.randn(shape, dtype=dtype) + 2)


def padded(x: Tensor, dim: int) -> Tensor:
    """With zeros in the channels that are gone."""
    shape = list(x.shape)
    shape[dim] = FULL - LEFT
    return torch.cat((x, x.new_zeros(shape)), dim)


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("grad", [True, False])
def test_equals_the_norm_over_all_channels(name, grad):
    whole, slim, x = pair(name)
    dim = NORMS[name][2]
    with torch.set_grad_enabled(grad):
        expected = whole(padded(x, dim)).narrow(dim, 0, LEFT)
        torch.testing.assert_close(slim(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NORMS)
def test_gradients_equal_those_of_the_norm_over_all_channels(name):
    whole, slim, x = pair(name)
    dim, y = NORMS[name][2], x.clone().requires_grad_()
    x.requires_grad_()
    direction = torch.randn_like(x)
    (slim(x) * direction).sum().backward()
    (whole(padded(y, dim)).narrow(dim, 0, LEFT) * direction).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-10, atol=1e-10)
    for mine, theirs in zip(slim.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad[:LEFT], rtol=1e-10, atol=1e-10)


def test_input_is_left_as_it_was():
    _, slim, x = pair("layer")
    before = x.clone()
    with torch.no_grad():
        slim(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", ["layer", "group"])
def test_half_precision_is_as_precise_as_a_norm_of_that_type(name):
    whole, slim, x = pair(name, torch.bfloat16)
    exact, dim = copy.deepcopy(whole).double(), NORMS[name][2]
    expected = exact(padded(x, dim).double()).narrow(dim, 0, LEFT)
    out = slim(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), expected, rtol=2**-7, atol=2**-6)


def test_compiled_and_exported_norms_are_the_same():
    whole, slim, x = pair("layer", torch.float32)
    expected = whole(padded(x, -1))[..., :LEFT]
    for form in (
        torch.compile(slim, backend="aot_eager"),
        torch.export.export(slim, (x,)).module(),
    ):
        torch.testing.assert_close(form(x), expected, rtol=1e-5, atol=1e-5)


def test_autocast_changes_nothing():
    _, slim, x = pair("layer", torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = slim(x)
    assert torch.equal(inside, slim(x))
