# SPDX-License-Identifier: MIT
"""Whether a ramp fits into its run: named before training, not found out at its end."""

from __future__ import annotations

from solo.errors import ConfigError
from sparse_ext.config.sections import SparseConfig
from sparse_ext.messages import log
from sparse_ext.schedules import Ramp


def check(
    config: SparseConfig, start: int | None, given: bool, end: int, period: int, steps: int
) -> None:
    """A ramp must fit between its latest start and its end, or `final` is never reached.

    Args:
        config: of the method.
        start: step at which the ramp starts at the latest; None = it may never.
        given: whether the user named that step.
        end: step by which the ramp is over.
        period: optimizer steps between two updates.
        steps: of the run.

    Raises:
        ConfigError: if it does not fit and settings of the user's are the reason. A warning says
            so where the run is merely short.
    """
    if start is None or config.final <= config.initial:
        return
    if end - Ramp.plan(start, end, period).t0 >= period:
        return
    message = (
        f"The ramp may start as late as step {start} and must end by step {end} "
        f"(sparse.ramp_end={config.ramp_end} of {steps} steps), which leaves no room for one "
        f"update period of {period} steps"
    )
    if given:
        raise ConfigError(f"{message}: start the ramp earlier, or train longer.")
    if config.update_period is not None:
        raise ConfigError(f"{message}: lower sparse.update_period, or train longer.")
    log.warning("%s: sparsity %s will not be reached.", message, config.final)
