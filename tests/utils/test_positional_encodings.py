# SPDX-License-Identifier: MIT
"""Positional encodings against the formula, position by position."""

import math

import pytest
import torch

from solo.utils.positional_encodings import (
    PositionalEncoding1D,
    PositionalEncoding2D,
    PositionalEncoding3D,
    PositionalEncodingPermute1D,
    PositionalEncodingPermute2D,
    PositionalEncodingPermute3D,
    Summer,
    get_emb,
)

pytestmark = pytest.mark.unit
CASES = [
    (PositionalEncoding1D, PositionalEncodingPermute1D, (2, 4), 5),
    (PositionalEncoding1D, PositionalEncodingPermute1D, (3, 6), 6),
    (PositionalEncoding2D, PositionalEncodingPermute2D, (2, 3, 5), 6),
    (PositionalEncoding3D, PositionalEncodingPermute3D, (1, 2, 3, 4), 11),
]


def reference(position, channel, channels, axes):
    """Channel c encodes axis c // per_axis; pairs of sine and cosine share a frequency."""
    per_axis = math.ceil(channels / (2 * axes)) * 2
    axis, inside = divmod(channel, per_axis)
    angle = position[axis] / 10000 ** ((inside // 2 * 2) / per_axis)
    return math.cos(angle) if inside % 2 else math.sin(angle)


@pytest.mark.parametrize(("plain", "permuted", "sizes", "channels"), CASES)
def test_formula(plain, permuted, sizes, channels):
    grid = sizes[1:]
    encoding = plain(channels)(torch.zeros(*sizes, channels))
    for sample in range(sizes[0]):
        for position in torch.cartesian_prod(*map(torch.arange, grid)).view(-1, len(grid)).tolist():
            expected = [reference(position, c, channels, len(grid)) for c in range(channels)]
            got = encoding[(sample, *position)]
            torch.testing.assert_close(got, torch.tensor(expected), atol=1e-6, rtol=1e-5)
    moved = permuted(channels)
    assert torch.equal(moved(torch.zeros(sizes[0], channels, *grid)), encoding.movedim(-1, 1))
    assert moved.org_channels == channels


def test_get_emb():
    angles = torch.tensor([[0.0, math.pi / 2]])
    torch.testing.assert_close(get_emb(angles), torch.tensor([[0.0, 1, 1, 0]]), atol=1e-6, rtol=0)


def test_cache_follows_the_shape_and_is_loaded_into_a_fresh_module():
    module = Summer(PositionalEncodingPermute1D(5))
    assert set(module.state_dict()) == {"penc.penc.inv_freq"}
    assert module.penc.penc.inv_freq.shape == (3,)
    x = torch.randn(2, 5, 7)
    first = module(x)
    saved = module.state_dict()
    assert set(saved) == {"penc.penc.inv_freq", "penc.penc.cached_penc"}
    fresh = Summer(PositionalEncodingPermute1D(5))
    fresh.load_state_dict(saved)
    assert torch.equal(fresh(x), first)
    assert fresh(torch.randn(4, 5, 3)).shape == (4, 5, 3)
    fresh.load_state_dict(saved)  # over a cache of another shape
    fresh.load_state_dict(saved)
    assert torch.equal(fresh(x), first)
    fresh.load_state_dict({"penc.penc.inv_freq": saved["penc.penc.inv_freq"]})
    assert set(fresh.state_dict()) == {"penc.penc.inv_freq"}


@pytest.mark.parametrize(
    ("module", "rank"),
    [(PositionalEncoding1D, 3), (PositionalEncoding2D, 4), (PositionalEncoding3D, 5)],
)
def test_wrong_rank(module, rank):
    with pytest.raises(RuntimeError, match=f"has to be {rank}d"):
        module(4)(torch.zeros(2, 4))


def test_summer_explains_too_few_channels():
    with pytest.raises(RuntimeError, match=r"at least as many channels"):
        Summer(PositionalEncoding1D(2))(torch.zeros(1, 3, 9))
