# SPDX-License-Identifier: MIT
"""Schedules against closed forms."""

import math

import pytest

from solo.errors import ConfigError
from sparse_ext.schedules import Ramp, cosine_fraction, cubic

pytestmark = pytest.mark.unit


def test_cubic_closed_form():
    for j in range(11):
        assert cubic(0.3, 0.9, j, 10) == pytest.approx(0.9 - 0.6 * (1 - j / 10) ** 3, abs=1e-15)


@pytest.mark.parametrize("n", [1, 3, 7, 10, 195])
def test_cubic_reaches_its_ends_exactly_and_stays(n):
    assert cubic(0.3, 0.9, 0, n) == 0.3
    assert cubic(0.3, 0.9, n, n) == 0.9
    assert cubic(0.3, 0.9, n + 5, n) == 0.9
    assert cubic(0.3, 0.9, -2, n) == 0.3


@pytest.mark.parametrize("n", [1, 10, 97])
def test_cubic_is_monotone_with_a_constant_gap(n):
    online = [cubic(0.3, 0.9, j, n) for j in range(n + 1)]
    momentum = [cubic(0.0, 0.6, j, n) for j in range(n + 1)]
    assert online == sorted(online)
    assert all(
        a - b == pytest.approx(0.3, abs=1e-12) for a, b in zip(online, momentum, strict=True)
    )


def test_cubic_mean_distance_is_a_quarter():
    n = 20_000
    mean = sum(cubic(0.0, 1.0, j, n) for j in range(n)) / n
    assert mean == pytest.approx(0.75, abs=1e-4)


@pytest.mark.parametrize("bad", [(-0.1, 0.9, 0, 5), (0.3, 1.1, 0, 5), (0.3, math.nan, 0, 5)])
def test_cubic_refuses_values_outside_0_1(bad):
    with pytest.raises(ConfigError, match=r"lie in \[0, 1\]"):
        cubic(*bad)


def test_cubic_refuses_an_empty_ramp():
    with pytest.raises(ConfigError, match="at least one mask update"):
        cubic(0.3, 0.9, 0, 0)


def test_cosine_fraction_prune_rate():
    p = [cosine_fraction(t, 1000, 0.5, 0.005) for t in (0, 500, 1000, 2000)]
    assert p == pytest.approx([0.5, 0.2525, 0.005, 0.005], abs=1e-12)
    assert p[0] == 0.5
    for t in (1, 100, 999):
        expected = 0.005 + 0.495 * (1 + math.cos(math.pi * t / 1000)) / 2
        assert cosine_fraction(t, 1000, 0.5, 0.005) == pytest.approx(expected, abs=1e-15)


def test_cosine_fraction_rigl():
    assert cosine_fraction(250, 750, 0.3, 0) == pytest.approx(0.15 * (1 + 0.5))
    assert cosine_fraction(750, 750, 0.3, 0) == 0


@pytest.mark.parametrize("bad", [(0, 0, 0.5, 0.1), (0, 10, 1.5, 0.1), (0, 10, 0.5, -0.1)])
def test_cosine_fraction_bad_input(bad):
    with pytest.raises(ConfigError, match="drop fraction"):
        cosine_fraction(*bad)


def test_ramp_due_and_index():
    ramp = Ramp(t0=20, period=10, n=3)
    assert [t for t in range(80) if ramp.due(t)] == [20, 30, 40, 50, 60, 70]
    assert [ramp.index(t) for t in (0, 20, 29, 30, 50, 60, 70)] == [0, 0, 0, 1, 3, 3, 3]
    assert ramp.end == 50


def test_ramp_plan_follows_the_specification():
    # 200 epochs of 195 steps, trigger after epoch 60, end at 0.69 T, Phi 1000.
    ramp = Ramp.plan(60 * 195, round(0.69 * 200 * 195), 1000)
    assert ramp == Ramp(12_000, 1000, 14)
    assert ramp.end == 26_000
    assert Ramp.plan(20, 50, 10) == Ramp(20, 10, 3)
    assert Ramp.plan(21, 25, 10) == Ramp(30, 10, 1)
    assert Ramp.plan(0, 0, 10) == Ramp(0, 10, 1)


@pytest.mark.parametrize("bad", [(-1, 1, 1), (0, 0, 1), (0, 1, 0)])
def test_ramp_bad_input(bad):
    with pytest.raises(ConfigError, match="period >= 1"):
        Ramp(*bad)
    with pytest.raises(ConfigError):
        Ramp.plan(0, 10, 0)
