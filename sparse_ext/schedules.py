# SPDX-License-Identifier: MIT
"""How sparsity and drop fraction change with the optimizer step: pure functions, no state."""

from __future__ import annotations

import math
from dataclasses import dataclass

from solo.errors import ConfigError


def cubic(initial: float, final: float, step_index: int, n_updates: int) -> float:
    """Sparsity at update `step_index` of `n_updates`: steep first, flat at the end.

    s(j) = s_f + (s_i - s_f) * (1 - j/n)^3 (Zhu & Gupta, 2017; SyncCP Eq. 10-11), with j clamped
    to [0, n]; s(0) is exactly `initial` and s(n) exactly `final`.

    Args:
        initial: value before the ramp, in [0, 1].
        final: value after the ramp, in [0, 1]. 1 is possible because N:M ramps the share of
            sparse groups, not the sparsity.
        step_index: index of the mask update, from 0.
        n_updates: index at which `final` is reached, at least 1.

    Raises:
        ConfigError: for values outside [0, 1] or fewer than one update.
    """
    for key, value in (("initial", initial), ("final", final)):
        if not 0 <= value <= 1:
            raise ConfigError(f"{key}={value!r}: the ends of a sparsity ramp lie in [0, 1].")
    if n_updates < 1:
        raise ConfigError(f"n_updates={n_updates!r}: a ramp needs at least one mask update.")
    j = min(max(step_index, 0), n_updates)
    if j in (0, n_updates):  # no rounding at the ends
        return float(final if j else initial)
    return final + (initial - final) * (1 - j / n_updates) ** 3


def cosine_fraction(t: int, total: int, start: float, end: float) -> float:
    """Drop fraction at optimizer step `t`: a half cosine from `start` (t = 0) to `end` (t = total).

    GraNet and SyncCP: start 0.5, end 0.005, total = all steps. RigL: start alpha, end 0,
    total = T_end. Steps outside [0, total] get the nearer end.

    Raises:
        ConfigError: for fewer than one step in total or fractions outside [0, 1].
    """
    if total < 1 or not 0 <= start <= 1 or not 0 <= end <= 1:
        raise ConfigError(
            f"A drop fraction from {start!r} to {end!r} over {total!r} steps: fractions lie in "
            "[0, 1] and there is at least one step."
        )
    t = min(max(t, 0), total)
    return end + (start - end) * (1 + math.cos(math.pi * t / total)) / 2


@dataclass(frozen=True)
class Ramp:
    """When masks change, counted in optimizer steps.

    Attributes:
        t0: first step that is due; the schedule's index is 0 there.
        period: steps between mask updates (Phi).
        n: index at which the ramp ends. Updates stay due afterwards, the index stays n.

    Raises:
        ConfigError: for a negative t0 or a period or n below 1.
    """

    t0: int
    period: int
    n: int

    def __post_init__(self) -> None:
        if self.t0 < 0 or self.period < 1 or self.n < 1:
            raise ConfigError(f"{self}: needs t0 >= 0, period >= 1 and n >= 1.")

    @classmethod
    def plan(cls, start: int, end: int, period: int) -> Ramp:
        """The ramp from the first multiple of `period` at or after `start`, to about `end`.

        n = max(1, floor((end - t0) / period)); the last update lands on `Ramp.end`.
        """
        t0 = -(-start // period) * period if period >= 1 else start
        return cls(t0, period, max(1, (end - t0) // period) if period >= 1 else 1)

    @property
    def end(self) -> int:
        """Step of the update that reaches the final value."""
        return self.t0 + self.n * self.period

    def due(self, t: int) -> bool:
        """Whether masks change after optimizer step `t`."""
        return t >= self.t0 and (t - self.t0) % self.period == 0

    def index(self, t: int) -> int:
        """Index of the latest update at step `t`, clamped to [0, n]."""
        return min(max((t - self.t0) // self.period, 0), self.n)


CIFAR_PERIOD = 1000  # optimizer steps, in the paper's runs of 195 steps an epoch, 1000 epochs


CIFAR_UPDATES = 195  # that many updates fit into those runs


@dataclass(frozen=True)
class Clock:
    """The length of a run in epochs and optimizer steps.

    Attributes:
        steps: optimizer steps in all.
        epochs: epochs in all (the last one may be cut short).
        steps_per_epoch: optimizer steps of a full epoch.
    """

    steps: int
    epochs: int
    steps_per_epoch: int


def default_period(steps: int) -> int:
    """Update period of a run of `steps` optimizer steps, in proportion to the paper's."""
    return min(CIFAR_PERIOD, max(1, steps // CIFAR_UPDATES))
