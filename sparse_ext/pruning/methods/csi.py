# SPDX-License-Identifier: MIT
"""Contrastive Sparsification Indicator: when may the sparsity ramp start? (SyncCP, section 4.2)

Two pseudo-masks at the final sparsities are compared: of the online and the momentum encoder, or
of one encoder at two consecutive epochs. The share of positions where they differ, I (Eq. 15-16),
is never below the gap of their densities and equals it at initialisation. So the paper's rule
"I = Delta_s" is a limit from above that fires at once; the robust rule looks at the excess over the
gap as a fraction of what two unrelated encoders would have, after a warm-up (section 5.3 and A1 of
the algorithms specification).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from solo.utils.ranks import share_value
from sparse_ext.config.sections import CSIConfig

WARMUP_EPOCHS = 10
WARMUP_SHARE = 0.05
CHANCE_AT_80 = 0.32  # 2 s (1 - s) at 80% sparsity, where tau = 0.1 is meant
SLACK = 1e-12  # I and its gap are quotients of integers; their difference carries rounding


class Comparison(NamedTuple):
    """Two pseudo-masks A and B over N positions.

    Attributes:
        inconsistency: I = |A xor B| / N, one fraction over all layers (Eq. 16).
        gap: | |A| - |B| | / N, the smallest value that I can have.
        chance: expected I if A and B had nothing to do with each other.
        layers: |A xor B| / N per layer.
    """

    inconsistency: float
    gap: float
    chance: float
    layers: Mapping[str, float] = {}

    @property
    def excess(self) -> float:
        """x in [0, 1]: 0 = as consistent as the gap allows, 1 = unrelated (more is possible)."""
        room = self.chance - self.gap
        above = self.inconsistency - self.gap
        return above / room if room > SLACK else 0.0

    def agreed(self) -> Comparison:
        """Rank 0's numbers, so that all ranks decide alike."""
        return self._replace(
            inconsistency=share_value(self.inconsistency),
            gap=share_value(self.gap),
            chance=share_value(self.chance),
        )


def compare(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Comparison:
    """Compare two sets of pseudo-masks (bool per layer, same names and shapes)."""
    sizes = [mask.numel() for mask in a.values()]
    counts = [(a[n] ^ b[n], a[n], b[n]) for n in a]
    table = torch.stack([torch.stack([m.count_nonzero() for m in row]) for row in counts])
    xors, ones_a, ones_b = table.t().tolist()
    n = sum(sizes)
    density_a, density_b = sum(ones_a) / n, sum(ones_b) / n
    return Comparison(
        inconsistency=sum(xors) / n,
        gap=abs(sum(ones_a) - sum(ones_b)) / n,
        chance=density_a * (1 - density_b) + density_b * (1 - density_a),
        layers={name: xor / size for name, xor, size in zip(a, xors, sizes, strict=True)},
    )


@dataclass
class CSI:
    """The trigger: fed once per epoch, says when to start.

    Args:
        config: mode and thresholds.
        epochs: length of the run.
        final: final sparsity of the online encoder.
        shared: one encoder, compared with itself an epoch ago.

    Attributes:
        history: one row (epoch, I, x) per compared epoch.
        streak: consecutive epochs below the threshold.
    """

    config: CSIConfig
    epochs: int
    final: float
    shared: bool = False
    streak: int = 0
    history: list[list[float]] = field(default_factory=list)

    @property
    def warmup(self) -> int:
        """Number of first epochs whose index is recorded and not judged."""
        if self.config.warmup_epochs is not None:
            return self.config.warmup_epochs
        return min(WARMUP_EPOCHS, math.ceil(WARMUP_SHARE * self.epochs))

    @property
    def last_epoch(self) -> int | None:
        """Epoch at whose end the ramp starts in any case; None = never."""
        if self.config.mode == "off":
            return 0
        if self.config.fixed_epoch is not None:
            at = self.config.fixed_epoch
            return math.ceil(at * self.epochs) if at < 1 else math.ceil(at)
        if self.config.mode == "literal":
            return None
        return math.ceil(self.config.deadline * self.epochs)

    def decide(self, epoch: int, seen: Comparison | None) -> str | None:
        """Why to start after `epoch` (1-based): `csi`, `deadline`, `epoch`, or None = not yet."""
        if seen is not None:
            self.history.append([epoch, seen.inconsistency, seen.excess])
        if self.config.fixed_epoch is not None or self.config.mode == "off":
            return "epoch" if epoch >= (self.last_epoch or 0) else None
        quiet = seen is not None and self._below(seen)
        if self.config.mode == "literal":
            return "csi" if quiet else None
        if epoch > self.warmup:
            self.streak = self.streak + 1 if quiet else 0
            if self.streak >= (1 if self.shared else self.config.patience):
                return "csi"
        return "deadline" if epoch >= (self.last_epoch or 0) else None

    def _below(self, seen: Comparison) -> bool:
        if self.shared:
            return seen.inconsistency < self.tau
        if self.config.mode == "normalized":
            return seen.excess <= self.config.kappa
        limit = self.config.eps if self.config.mode == "absolute" else SLACK
        return seen.inconsistency - seen.gap <= limit

    @property
    def tau(self) -> float:
        """Threshold of the rule for one encoder."""
        chance = 2 * self.final * (1 - self.final)
        return self.config.tau * (chance / CHANCE_AT_80 if self.config.tau_relative else 1.0)

    def state_dict(self) -> dict[str, Any]:
        """What the trigger has seen, for a checkpoint."""
        return {"streak": self.streak, "history": self.history}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was taken."""
        self.streak = state["streak"]
        self.history = [list(row) for row in state["history"]]
