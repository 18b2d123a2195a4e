# SPDX-License-Identifier: MIT
"""Radix select against a stable full sort."""

import math

import pytest
import torch

from solo.errors import ConfigError, NonFiniteError
from sparse_ext.allocation.budgets import global_topk, keep_topk

pytestmark = pytest.mark.unit


def by_sorting(scores, k, eligible=None):
    """The same by sorting (score descending, layer, flat index): Python's sort is stable."""
    entries = []
    for name, score in scores.items():
        flat = score.contiguous().flatten().tolist()
        allowed = (eligible or {}).get(name)
        allowed = allowed.contiguous().flatten().tolist() if allowed is not None else None
        entries += [(v, name, i) for i, v in enumerate(flat) if allowed is None or allowed[i]]
    masks = {name: torch.zeros(score.numel(), dtype=torch.bool) for name, score in scores.items()}
    for _, name, i in sorted(entries, key=lambda e: -e[0])[:k]:
        masks[name][i] = True
    return {name: masks[name].reshape(score.shape) for name, score in scores.items()}


def assert_same(got, expected):
    assert list(got) == list(expected)
    for name in got:
        assert got[name].dtype is torch.bool
        assert torch.equal(got[name], expected[name]), name


def test_ties_go_to_the_lowest_index():
    score = torch.ones(10_000)
    for copy in (score, score.bfloat16(), score.half(), score.double(), score.long(), -score):
        kept = keep_topk(copy, 37)
        assert kept.nonzero().flatten().tolist() == list(range(37))


def draws(kind):
    generator = torch.Generator().manual_seed(7)
    shapes = {"a": (6, 4, 3, 3), "b": (17,), "c": (1, 1), "d": (8, 5)}
    for name, shape in shapes.items():
        x = torch.randn(shape, generator=generator)
        yield (
            name,
            {
                "magnitudes": x.abs(),
                "signed": x,
                "negative": -x.abs(),
                "ties": (x * 3).round() / 3,
                "many scales": x.sign() * (10.0 ** (x * 12)),
                "denormal": x * 1e-40,
                "double": x.double() + 1e-12 * torch.arange(x.numel()).reshape(shape),
                "double denormal": x.double() * 1e-310,
                "half": x.half(),
                "bfloat16": x.bfloat16(),
                "integers": (x * 5).long(),
                "zeros of both signs": torch.where(x > 0, 0.0, -0.0),
                "extremes": torch.where(x > 0, 3.4028e38, -3.4028e38),
                "one bucket": 1 + x.abs() * 1e-6,
            }[kind],
        )


KINDS = [
    "magnitudes",
    "signed",
    "negative",
    "ties",
    "many scales",
    "denormal",
    "double",
    "double denormal",
    "half",
    "bfloat16",
    "integers",
    "zeros of both signs",
    "extremes",
    "one bucket",
]


@pytest.mark.parametrize("kind", KINDS)
def test_global_equals_full_sort(kind):
    scores = dict(draws(kind))
    n = sum(s.numel() for s in scores.values())
    for k in (0, 1, 2, 17, n // 3, n // 2, n - 1, n):
        assert_same(global_topk(scores, k), by_sorting(scores, k))


@pytest.mark.parametrize("kind", ["signed", "ties", "zeros of both signs"])
def test_eligible_entries_only(kind):
    scores = dict(draws(kind))
    eligible = {n: torch.rand(s.shape) < 0.4 for n, s in scores.items() if n != "b"}
    eligible["d"] = torch.zeros_like(eligible["d"])
    n = sum(e.sum().item() for e in eligible.values()) + scores["b"].numel()
    for k in (0, 1, n // 2, n):
        kept = global_topk(scores, int(k), eligible)
        assert_same(kept, by_sorting(scores, k, eligible))
        assert not (kept["a"] & ~eligible["a"]).any()


def test_an_excluded_entry_is_not_a_zero_score():
    # Real zeros tie with "score 0 for the excluded ones": those must never fill up the budget.
    score = torch.tensor([0.0, 5.0, 0.0, 0.0])
    allowed = torch.tensor([False, False, True, True])
    assert keep_topk(score, 2, allowed).tolist() == [False, False, True, True]


def test_an_excluded_nan_does_not_matter():
    score = torch.tensor([math.nan, 1.0, 2.0])
    assert keep_topk(score, 1, torch.tensor([False, True, True])).tolist() == [False, False, True]


def test_memory_format_does_not_change_the_mask():
    score = (torch.randn(16, 8, 3, 3) * 2).round()
    last = score.to(memory_format=torch.channels_last)
    a, b = keep_topk(score, 300), keep_topk(last, 300)
    assert torch.equal(a, b)
    assert b.is_contiguous(memory_format=torch.channels_last)
    odd = score.permute(2, 0, 3, 1)
    assert torch.equal(keep_topk(odd, 300), keep_topk(odd.contiguous(), 300))


def test_views_and_gradients_are_welcome():
    weight = torch.randn(6, 10, requires_grad=True)
    kept = keep_topk(weight[::2, 1::3], 4)
    assert torch.equal(kept, keep_topk(weight.detach()[::2, 1::3].clone(), 4))
    assert not kept.requires_grad


@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sign", [1, -1])
def test_nan_and_infinity_are_named(bad, dtype, sign):
    scores = {"good": torch.rand(5).to(dtype), "layer1.conv": (sign * torch.rand(3, 3)).to(dtype)}
    scores["layer1.conv"][1, 2] = bad
    for k in (0, 3, 14):
        with pytest.raises(NonFiniteError, match=r"1 of 9 scores of 'layer1\.conv'"):
            global_topk(scores, k)


def test_the_largest_finite_value_is_finite():
    for dtype in (torch.float32, torch.float64):
        top = torch.finfo(dtype).max
        score = torch.tensor([1.0, top, -top], dtype=dtype)
        assert keep_topk(score, 1).tolist() == [False, True, False]


@pytest.mark.parametrize("k", [-1, 5, 2.0, True, None])
def test_k_out_of_range(k):
    allowed = torch.tensor([True] * 4 + [False] * 6)
    with pytest.raises(ConfigError, match=r"of 4 eligible entries.*from 0 to 4"):
        keep_topk(torch.rand(10), k, allowed)


def test_eligible_must_fit():
    with pytest.raises(ConfigError, match=r"bool tensor of shape \(4,\)"):
        keep_topk(torch.rand(4), 1, torch.ones(4))
    with pytest.raises(ConfigError, match=r"got torch.bool \(3,\)"):
        keep_topk(torch.rand(4), 1, torch.ones(3, dtype=torch.bool))
    with pytest.raises(ConfigError, match="'b', which has no score"):
        global_topk({"a": torch.rand(3)}, 1, {"b": torch.ones(3, dtype=torch.bool)})


def test_empty_layers_and_empty_mappings():
    scores = {"a": torch.rand(0, 4), "b": torch.rand(5), "c": torch.rand(())}
    assert_same(global_topk(scores, 3), by_sorting(scores, 3))
    assert global_topk({}, 0) == {}


def test_a_million_scores_equal_torch_sort():
    scores = torch.randn(1_000_003).mul_(100).round_().div_(100)
    order = torch.sort(scores, descending=True, stable=True).indices
    for k in (1, 123_456, 999_999):
        expected = torch.zeros(scores.numel(), dtype=torch.bool)
        expected[order[:k]] = True
        assert torch.equal(keep_topk(scores, k), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_the_gpu_chooses_as_the_cpu(kind):
    scores = dict(draws(kind))
    n = sum(s.numel() for s in scores.values())
    for k in (0, 1, n // 3, n):
        there = global_topk({name: s.cuda() for name, s in scores.items()}, k)
        assert all(mask.is_cuda for mask in there.values())
        assert_same({name: mask.cpu() for name, mask in there.items()}, global_topk(scores, k))
