# SPDX-License-Identifier: MIT
"""Mean and spread over seeds, and differences seed by seed with their uncertainty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

from scipy.stats import t as student

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Spread:
    """Of the values of several seeds.

    Attributes:
        n: how many values.
        mean: of them.
        sd: standard deviation of the sample (n - 1 in the denominator); None of one value.
    """

    n: int
    mean: float
    sd: float | None


@dataclass(frozen=True)
class Difference:
    """Mean of differences of pairs.

    Attributes:
        n: how many pairs.
        mean: of their differences.
        low: lower end of the interval; None of one pair, which says nothing about the spread.
        high: upper end.
    """

    n: int
    mean: float
    low: float | None
    high: float | None


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation of at least one value.

    >>> spread([1.0, 3.0])
    Spread(n=2, mean=2.0, sd=1.4142135623730951)
    """
    mean = sum(values) / len(values)
    if len(values) < 2:
        return Spread(1, mean, None)
    squares = sum((value - mean) ** 2 for value in values)
    return Spread(len(values), mean, sqrt(squares / (len(values) - 1)))


def paired(
    values: Mapping[int, float], reference: Mapping[int, float], confidence: float = CONFIDENCE
) -> Difference | None:
    """Value minus reference of each seed that both have, with Student's interval of the mean.

    Two runs of one seed share initial weights, order of images and views, so that their difference
    varies less than either of them. The interval is mean +- t sd / sqrt(n) with n - 1 degrees of
    freedom; it holds for one row at a time, not for all rows of a table together.

    Args:
        values: by seed.
        reference: by seed.
        confidence: probability that such an interval covers the true mean.

    Returns:
        None where no seed is in both.
    """
    seeds = sorted(values.keys() & reference.keys())
    if not seeds:
        return None
    found = spread([values[seed] - reference[seed] for seed in seeds])
    if found.sd is None:
        return Difference(1, found.mean, None, None)
    half = float(student.ppf((1 + confidence) / 2, found.n - 1)) * found.sd / sqrt(found.n)
    return Difference(found.n, found.mean, found.mean - half, found.mean + half)
