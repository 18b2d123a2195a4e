# SPDX-License-Identifier: MIT
"""Length of a run, and how often masks change in it. Counted in optimizer steps."""

from __future__ import annotations

from dataclasses import dataclass

CIFAR_PERIOD = 1000  # optimizer steps, in the paper's runs of 195 steps an epoch, 1000 epochs
CIFAR_UPDATES = 195  # that many updates fit into those runs


@dataclass(frozen=True)
class Clock:
    """Length of a run.

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
