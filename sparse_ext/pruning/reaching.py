# SPDX-License-Identifier: MIT
"""Whether a run reaches its final sparsity: checked before it, and said after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from solo.errors import ConfigError
from sparse_ext.config.sections import SparseConfig
from sparse_ext.pruning.log import log
from sparse_ext.schedules import Ramp

if TYPE_CHECKING:
    from sparse_ext.pruning.pruner import Pruner


def check_ramp(pruner: Pruner) -> None:
    """A ramp must fit between its latest start and its end, or `final` is never reached.

    Raises:
        ConfigError: if it does not fit and settings of the user's are the reason. A warning says
            so where the run is merely short.
    """
    config: SparseConfig = pruner.config
    start, end, period = pruner.latest_start, pruner.t_end, pruner.period
    if start is None or config.final <= config.initial:
        return
    if end - Ramp.plan(start, end, period).t0 >= period:
        return
    message = (
        f"The ramp may start as late as step {start} and must end by step {end} "
        f"(sparse.ramp_end={config.ramp_end} of {pruner.clock.steps} steps), which leaves no room "
        f"for one update period of {period} steps"
    )
    if config.start_is_given:
        raise ConfigError(f"{message}: start the ramp earlier, or train longer.")
    if config.update_period is not None:
        raise ConfigError(f"{message}: lower sparse.update_period, or train longer.")
    log.warning("%s: sparsity %s will not be reached.", message, config.final)


def report_end(pruner: Pruner) -> None:
    """Warn if the run ends with another sparsity than it was asked for."""
    if pruner.slimmed is not None:
        return  # that was reported when masks became final
    why = (
        "the ramp never started"
        if pruner.ramp is None
        else f"it stopped after {pruner.t} steps, the ramp ends at step {pruner.ramp.end}"
    )
    for encoder, final in zip(pruner.encoders, pruner.finals, strict=True):
        if pruner.units.compare(encoder.masks, final):
            log.warning(
                "The run ended at sparsity %.4f, not at the final %s: %s.",
                *(pruner.sparsity_of(encoder), final, why),
            )
