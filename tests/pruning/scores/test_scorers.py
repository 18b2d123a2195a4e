# SPDX-License-Identifier: MIT
"""Scores against closed forms."""

import math

import pytest
import torch
from torch import nn

from solo.errors import ConfigError
from sparse_ext.allocation.budgets import keep_topk
from sparse_ext.pruning.scores import random_draws, scorers

pytestmark = pytest.mark.unit


def test_magnitude_of_latents():
    weight, shadow = torch.tensor([-2.0, 0.0, 1.0]), torch.tensor([0.0, -3.0, 0.0])
    assert scorers.magnitude(weight).tolist() == [2, 0, 1]
    assert scorers.magnitude(weight + shadow).tolist() == [2, 3, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_of_half_tensors_are_float32(dtype):
    x = torch.tensor([1e-3, -2.0]).to(dtype)
    for score in (scorers.magnitude(x), scorers.gradient(x), scorers.snip(x, x)):
        assert score.dtype is torch.float32
    # 1e-3 squared is subnormal in float16 and loses bits there.
    assert scorers.snip(x, x)[0] == x[0].float() ** 2


def test_ema_of_a_constant_gradient():
    scores = [torch.zeros(3), torch.zeros(2, 2)]
    grads = [torch.full((3,), -2.0), torch.full((2, 2), 5.0)]
    for t in range(1, 30):
        scorers.ema_gradient_(scores, grads, 0.9)
        assert scores[0].tolist() == pytest.approx([2 * (1 - 0.9**t)] * 3, rel=1e-5)
    assert scores[1][0, 0].item() == pytest.approx(5 * (1 - 0.9**29), rel=1e-5)


@pytest.mark.parametrize(("history", "expected"), [(0.9, (0.1, 0.39)), (0.1, (0.9, 2.79))])
def test_ema_two_steps(history, expected):
    score = torch.zeros(1)
    for value, wanted in zip((1.0, -3.0), expected, strict=True):
        scorers.ema_gradient_([score], [torch.tensor([value])], history)
        assert score.item() == pytest.approx(wanted, rel=1e-6)


def test_ema_takes_half_gradients_and_no_gradients():
    score = torch.zeros(2)
    scorers.ema_gradient_([score], [torch.tensor([1.0, 2.0]).bfloat16()], 0.0)
    assert score.tolist() == [1, 2]
    scorers.ema_gradient_([], [], 0.5)


@pytest.mark.parametrize("history", [1.0, -0.1, math.nan])
def test_ema_bad_history(history):
    with pytest.raises(ConfigError, match="weight of past gradients"):
        scorers.ema_gradient_([torch.zeros(1)], [torch.ones(1)], history)


def test_snip_is_the_mask_gradient_of_a_linear_net():
    weight, x, y = torch.randn(3, 5), torch.randn(7, 5), torch.randn(7, 3)
    mask = torch.ones_like(weight, requires_grad=True)
    ((x @ (weight * mask).t() - y) ** 2).mean().backward()
    closed = 2 / 21 * ((x @ weight.t() - y).t() @ x)
    assert torch.allclose(scorers.snip(weight, closed), mask.grad.abs(), atol=1e-6)


def test_snip_is_conserved_between_layers_of_a_relu_net():
    net = nn.Sequential(
        nn.Linear(6, 9, bias=False),
        nn.ReLU(),
        nn.Linear(9, 8, bias=False),
        nn.ReLU(),
        nn.Linear(8, 4, bias=False),
    ).double()
    loss = nn.functional.cross_entropy(net(torch.randn(16, 6).double()), torch.arange(16) % 4)
    loss.backward()
    sums = [(p.grad * p).sum().item() for p in net.parameters()]
    assert sums == pytest.approx([sums[0]] * 3, abs=1e-12)
    for p in net.parameters():
        assert torch.equal(scorers.snip(p, p.grad), (p.grad * p).abs().detach())


def test_grasp_on_a_quadratic():
    root, w = torch.randn(6, 6).double(), torch.randn(6).double().requires_grad_()
    hessian = root @ root.t()
    (product,) = scorers.hessian_gradient([lambda: 0.5 * w @ hessian @ w], [w])
    expected = hessian @ hessian @ w.detach()
    assert torch.allclose(product, expected)
    score = scorers.grasp(w, product)
    paper = -w.detach() * expected
    assert torch.allclose(score, -paper)
    removed = (~keep_topk(score, 4)).nonzero().flatten().tolist()
    assert sorted(removed) == sorted(paper.topk(2).indices.tolist())


def test_hessian_gradient_averages_over_batches():
    w, v = (torch.randn(4).double().requires_grad_() for _ in range(2))
    a, b = (torch.randn(4, 4).double() for _ in range(2))
    a, b = a @ a.t(), b @ b.t()

    def loss(h):
        return lambda: 0.5 * w @ h @ w + w @ v

    hw, hv = scorers.hessian_gradient([loss(a), loss(b)], [w, v])
    mean = (a + b) / 2
    gw, gv = (mean @ w + v).detach(), w.detach()
    assert torch.allclose(hw, mean @ gw + gv)
    assert torch.allclose(hv, gw)


def test_random_depends_on_its_arguments_only():
    torch.manual_seed(1)
    a = random_draws.random((4, 5), 3, "layer1.0.conv1", "initial", 0)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(a, random_draws.random((4, 5), 3, "layer1.0.conv1", "initial", 0))
    assert torch.equal(state, torch.get_rng_state())
    for other in (
        (4, "layer1.0.conv1", "initial", 0),
        (3, "layer1.0.conv2", "initial", 0),
        (3, "layer1.0.conv1", "regrow", 0),
        (3, "layer1.0.conv1", "initial", 1),
    ):
        assert not torch.equal(a, random_draws.random((4, 5), *other))


def test_random_masks_of_two_densities_are_nested():
    score = random_draws.random((64, 32, 3, 3), 0, "conv", "initial")
    assert score.unique().numel() == score.numel()
    sparse, dense = keep_topk(score, 1843), keep_topk(score, 9216)
    assert not (sparse & ~dense).any()


def test_random_is_uniform():
    score = random_draws.random((100_000,), 0, "conv", "initial")
    share = score.histc(10, 0, 1) / score.numel()
    assert (share - 0.1).abs().max() < 0.005


def test_hash64_is_stable_and_injective_in_its_parts():
    assert random_draws.hash64(0, "a", "b", 1) == random_draws.hash64(0, "a", "b", 1)
    assert random_draws.hash64("a", "bc") != random_draws.hash64("ab", "c")
    assert random_draws.hash64("1") != random_draws.hash64(1)
    values = [random_draws.hash64(0, "conv", "x", t) for t in range(1000)]
    assert len(set(values)) == 1000
    assert all(-(2**63) <= v < 2**63 for v in values)
    # Written down once: a change would silently redraw the masks of resumed runs.
    assert random_draws.hash64(5, "layer1.0.conv1", "initial", 0) == HASH_OF_ONE_LAYER


HASH_OF_ONE_LAYER = 6427052271250434722
