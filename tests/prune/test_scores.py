# SPDX-License-Identifier: MIT
"""Label-free scores against brute force and closed forms."""

import numpy as np
import pytest
import torch
from torch import nn

from solo.errors import ConfigError
from sparse_ext.masks.granularity import parse
from sparse_ext.prune import budgets, layer_inputs, scores, sparsegpt
from sparse_ext.pruning.units import Units

pytestmark = pytest.mark.unit


def brute_force_lamp(weight):
    squares = [float(w) ** 2 for w in weight.flatten()]
    return [s / sum(t for t in squares if t >= s) for s in squares]


def test_lamp_by_brute_force():
    weight = torch.randn(5, 4, 3)
    expected = torch.tensor(brute_force_lamp(weight)).reshape(weight.shape)
    assert torch.allclose(scores.lamp(weight), expected, atol=1e-6)
    assert scores.lamp(weight).max() == 1


def test_lamp_of_zeros_is_zero():
    assert scores.lamp(torch.zeros(3)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    "options", [{}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": 2}]
)
def test_a_convolution_is_a_linear_layer_over_its_unfolded_input(groups, options):
    layer = nn.Conv2d(4, 6, 3, groups=groups, bias=False, **options)
    x = torch.randn(2, 4, 9, 9)
    rows = layer_inputs.matrix(layer.weight, groups)
    found = layer_inputs.samples(layer, x)
    product = torch.einsum("grd,gsd->gsr", rows, found)
    expected = layer(x).flatten(2).movedim(1, 2)  # (N, positions, C_out)
    expected = expected.reshape(-1, groups, 6 // groups).movedim(1, 0)
    assert torch.allclose(product, expected, atol=1e-5)
    assert torch.equal(layer_inputs.weight_of(rows, layer.weight.shape), layer.weight)


def test_moments_of_all_positions():
    layer = nn.Conv2d(3, 4, 3, padding=1)
    batches = [torch.randn(2, 3, 6, 6) for _ in range(3)]
    found = layer_inputs.moments(layer, {"": layer}, batches)[""]
    every = torch.cat([layer_inputs.samples(layer, x) for x in batches], dim=1)[0].double()
    assert found.count == len(every)
    assert torch.allclose(found.second[0].double(), every.T @ every / len(every), atol=1e-5)


def test_wanda_by_brute_force():
    layer = nn.Linear(5, 3)
    x = torch.randn(40, 5)
    second = layer_inputs.moments(layer, {"": layer}, [x])[""].second
    found = scores.wanda(layer_inputs.matrix(layer.weight), second)[0]
    norms = np.sqrt((x.numpy() ** 2).sum(0))
    expected = np.abs(layer.weight.detach().numpy()) * norms / np.sqrt(len(x))
    assert np.allclose(found.numpy(), expected, atol=1e-5)


def test_taylor_is_the_squared_change_of_the_loss():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 6))
    images = torch.randn(4, 3, 8, 8)
    found = scores.taylor(net, {"1": net[1]}, [images], seed=3)["1"]
    views = scores.two_views(images, torch.Generator().manual_seed(3)).double()
    net = net.double()

    def loss():
        z = nn.functional.normalize(net(views), dim=1)
        similar = z @ z.T / 0.1
        similar.fill_diagonal_(-torch.inf)
        return nn.functional.cross_entropy(similar, torch.arange(8).roll(4))

    weight, step = net[1].weight, 1e-5
    for place in [(0, 0), (3, 70), (5, 191)]:
        with torch.no_grad():
            old = weight[place].clone()
            weight[place] = old + step
            above = loss()
            weight[place] = old - step
            below = loss()
            weight[place] = old
        change = (above - below) / (2 * step) * old
        assert found[place].item() == pytest.approx(change.item() ** 2, rel=1e-3, abs=1e-9)
    assert not net[1].weight.grad


# -- masks ------------------------------------------------------------------------------------


def test_rows_keep_equally_many():
    score = torch.rand(7, 10)
    mask = budgets.keep_by_row(score, 7 * 3 + 2)
    counts = mask.sum(1)
    assert counts.sum() == 23
    assert set(counts.tolist()) == {3, 4}
    for row, kept in zip(score, mask, strict=True):
        assert row[kept].min() >= row[~kept].max()
    nexts = score.sort(dim=1, descending=True).values[:, 3]
    assert set(nexts.topk(2).indices.tolist()) == set((counts == 4).nonzero().flatten().tolist())


@pytest.mark.parametrize("text", ["element", "2:4", "block8", "filter"])
def test_units_of_lowest_cost_go(text):
    granularity = parse(text)
    score = torch.rand(16, 16)
    cost, survivors = budgets.costs(granularity, score)
    mask = budgets.keep_units(granularity, score, len(cost.flatten()) // 2)
    assert granularity.fits(mask)
    gone = ~granularity.groups_kept(mask).flatten()
    assert cost.flatten()[gone].max() <= cost.flatten()[~gone].min()
    if text == "2:4":
        best = score.reshape(-1, 4).sort(dim=1, descending=True).values
        assert torch.allclose(cost, best[:, 2:].sum(1))
        assert survivors.sum() == score.numel() / 2


@pytest.mark.parametrize("rule", budgets.rules())
def test_budgets_add_up(rule):
    weights = {"a": torch.randn(8, 8, 3, 3), "b": torch.randn(16, 8, 1, 1)}
    units = Units("element", {name: tuple(w.shape) for name, w in weights.items()})
    magnitude = {name: w.abs() for name, w in weights.items()}
    kept = budgets.layer_budgets(units, weights, 0.7, rule, magnitude)
    assert sum(kept.values()) == round(0.3 * units.total)


def test_a_sparsity_that_cannot_be_reached_is_named():
    with pytest.raises(ConfigError, match=r"0\.8 cannot be reached .* 2:4.*at most 0\.5"):
        budgets.unit_share(parse("2:4"), 0.8)
    with pytest.raises(ConfigError, match=r"for 80% of the weights pruned write 0\.8"):
        budgets.unit_share(parse("element"), 80)
    units = Units("element", {"a": (4, 4)})
    with pytest.raises(ConfigError, match="choose lamp, erk, er or uniform"):
        budgets.layer_budgets(units, {}, 0.5, "global", None)
    with pytest.raises(ConfigError, match="Did you mean 'uniform'"):
        budgets.layer_budgets(units, {}, 0.5, "unifrom", None)


# -- SparseGPT --------------------------------------------------------------------------------


def problem(rows=6, d=12, samples=200, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator, dtype=torch.float64)
    x = torch.randn(samples, d, generator=generator, dtype=torch.float64) @ mixing
    w = torch.randn(rows, d, generator=generator, dtype=torch.float64)
    return w, x, x.T @ x / samples


def test_pruning_one_weight_is_the_closed_form_of_least_squares():
    w, _, second = problem(rows=1)
    first = torch.ones(1, 12, dtype=torch.bool)
    first[0, 0] = False  # columns to the right may all take over: the exact optimum
    new, mask = sparsegpt.prune(w, second, lambda s, start: first[:, start : start + s.shape[1]])
    assert torch.equal(mask, first)
    damped = second + 0.01 * second.diagonal().mean() * torch.eye(12, dtype=torch.float64)
    rest = damped[1:, 1:].inverse() @ damped[1:] @ w[0]  # minimises (w - v)^T H (w - v), v_0 = 0
    assert torch.allclose(new[0, 1:], rest, atol=1e-8)
    assert new[0, 0] == 0


def test_columns_from_the_left_equal_repeated_least_squares():
    w, _, second = problem(rows=3, d=9)
    generator = torch.Generator().manual_seed(1)
    given = torch.rand(3, 9, generator=generator) < 0.5
    new, _ = sparsegpt.prune(w, second, lambda s, start: given[:, start : start + s.shape[1]])
    damped = second + 0.01 * second.diagonal().mean() * torch.eye(9, dtype=torch.float64)
    for row, mask, got in zip(w.clone(), given, new, strict=True):
        for j in range(9):  # what is left of j is fixed, what is right of it takes over
            if mask[j]:
                continue
            error, row[j] = -row[j].item(), 0.0
            if j < 8:
                row[j + 1 :] -= damped[j + 1 :, j + 1 :].inverse() @ damped[j + 1 :, j] * error
        assert torch.allclose(got, row, atol=1e-8)


def by_block(sparsity):
    def choose(score, start):
        return budgets.keep_units(parse("element"), score, round((1 - sparsity) * score.numel()))

    return choose


def test_the_error_is_what_the_outputs_say():
    w, x, second = problem(rows=16, d=140, samples=600)
    new, mask = sparsegpt.prune(w, second, by_block(0.5))
    assert (new[~mask] == 0).all()
    brute = ((x @ (w - new).T) ** 2).sum() / ((x @ w.T) ** 2).sum()
    found = sparsegpt.relative_error(w[None], new[None], second[None])
    assert found == pytest.approx(brute.item(), rel=1e-6)
    zeroed = sparsegpt.relative_error(w[None], (w * mask)[None], second[None])
    assert found < zeroed  # the same mask without correction


def test_refining_reaches_the_least_squares_of_a_mask():
    w, _, second = problem(rows=5, d=10)
    mask = torch.rand(5, 10) < 0.4
    new = sparsegpt.refine(w, w * mask, mask, second, steps=30)
    for row, kept, got in zip(w, mask, new, strict=True):
        exact = torch.linalg.solve(second[kept][:, kept], second[kept] @ row)
        assert torch.allclose(got[kept], exact, atol=1e-8)
        assert (got[~kept] == 0).all()


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_refining_never_makes_a_row_worse(steps):
    w, _, second = problem(rows=8, d=30, samples=20)  # fewer samples than inputs: singular
    mask = torch.rand(8, 30) < 0.3
    new = sparsegpt.refine(w, w * mask, mask, second, steps)

    def errors(v):
        return ((w - v) @ second * (w - v)).sum(1)

    assert (errors(new) <= errors(w * mask) + 1e-9).all()


def test_dead_inputs_cost_nothing():
    w, _, second = problem(rows=4, d=8)
    second[3] = second[:, 3] = 0
    new, mask = sparsegpt.prune(
        w, second, lambda s, start: budgets.keep_units(parse("element"), s, 4 * 7)
    )
    assert not mask[:, 3].any()
    assert torch.allclose(new[:, [0, 1, 2, 4, 5, 6, 7]], w[:, [0, 1, 2, 4, 5, 6, 7]])
