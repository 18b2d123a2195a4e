# SPDX-License-Identifier: MIT
"""Slimming while training: masks become final and the run goes on with smaller encoders.

From `sparse.slim_at` on, before a batch and again after every update period: channels that masks
have emptied in *all* encoders are removed from all of them, with their optimizer state. The loss of
the step is the same with and without them, because a channel only goes if every layer that reads it
has masked it, or sees a constant in train mode: 0 exactly (batch norm's beta is not positive before
a ReLU), or one that another channel can carry (`sparse_ext.masks.channels.removal`).
Evaluation stays the same too, because train and eval mode must agree on the constant: the running
statistics of an emptied channel approach (0, 0) at batch norm's momentum. Channels that do not
qualify yet may the next time. Later steps differ where a rule looks at whole tensors (LARS, norms
of clipped gradients), and where several constants have become one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim import Optimizer

from solo.errors import ConfigError
from sparse_ext.config.sections import SparseConfig
from sparse_ext.masks.channels.removal import Report, shrink_
from sparse_ext.masks.encoder import Encoder
from sparse_ext.masks.living_weights import LatentEncoder
from sparse_ext.pruning.log import log
from sparse_ext.pruning.pruner import Pruner
from sparse_ext.pruning.units import Units
from sparse_ext.schedules import Clock
from sparse_ext.training import mask_agreement


class Final(Pruner):
    """Masks that no longer change, of encoders that may have become smaller.

    Args:
        config, online, momentum, clock, seed: as for every pruner.
        before: prunable weights of each encoder when masks became final; None = as many as now.
        slimmed_at: optimizer step at which channels were last looked for.
    """

    def __init__(
        self,
        config: Any,
        online: Encoder,
        momentum: Encoder | None,
        clock: Clock,
        seed: int = 0,
        before: int | None = None,
        slimmed_at: int = 0,
    ) -> None:
        super().__init__(config, online, momentum, clock, seed)
        self.before = before or online.masks.n
        self.slimmed_at = slimmed_at

    def make_units(self) -> Units:
        """Single weights: widths may no longer be multiples of a block."""
        return Units("element", self.online.masks.shapes)

    def check(self, optimizer: Optimizer | None = None) -> None:
        """I1-I3; budgets were those of the full encoders."""
        for encoder in self.encoders:
            encoder.check(optimizer if encoder is self.online else None)

    def weight_sparsities(self) -> list[float]:
        """Missing share of the weights that the full encoders had."""
        return [1 - encoder.masks.nnz / self.before for encoder in self.encoders]

    def report_end(self) -> None:
        """The budgets were met when masks became final, or that was reported then."""

    def extra_state(self) -> dict[str, Any]:
        """What a resumed run needs to go on as one of these."""
        return {"before": self.before, "slimmed_at": self.slimmed_at}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take over `extra_state`."""
        self.before, self.slimmed_at = state["before"], state["slimmed_at"]


class Slimming:
    """When to slim, and the act itself.

    Args:
        pruner: the method at work.

    Raises:
        ConfigError: if masks are to become final before the ramp ends, or after the run does.
    """

    def __init__(self, pruner: Pruner) -> None:
        config, clock = pruner.config, pruner.clock
        share = config.slim_at < 1
        self.at = round(config.slim_at * clock.steps) if share else int(config.slim_at)
        if self.at >= clock.steps:
            raise ConfigError(
                f"sparse.slim_at={config.slim_at} is step {self.at} of a run of {clock.steps}."
            )
        if pruner.latest_start() is not None and self.at <= pruner.t_end:
            raise ConfigError(
                f"sparse.slim_at={config.slim_at} is step {self.at}, but sparsity grows until step "
                f"{pruner.t_end} (sparse.ramp_end={config.ramp_end} of {clock.steps} steps): slim "
                f"later, or end the ramp earlier."
            )

    def due(self, pruner: Pruner) -> bool:
        """Whether to slim before the step about to be made."""
        if pruner.t < self.at or (pruner.t - self.at) % pruner.period:
            return False
        return not isinstance(pruner, Final) or pruner.slimmed_at < pruner.t

    def __call__(self, pruner: Pruner, optimizer: Optimizer) -> tuple[Final, Report]:
        """Slim the encoders in place; returns the pruner that takes over.

        Args:
            pruner: the method at work, or the `Final` of the last time.
            optimizer: of the run.
        """
        again = isinstance(pruner, Final)
        before = pruner.before if again else pruner.online.masks.n  # type: ignore[attr-defined]
        pruner.report_end()
        report = shrink_([e.module for e in pruner.encoders], optimizer, train=True)
        new = final(pruner, before)
        new.slimmed_at = pruner.t
        _tell(report, pruner.t, again)
        return new, report


def final(pruner: Pruner, before: int) -> Final:
    """A `Final` in the place of `pruner`."""
    parts = pruner.config, pruner.online, pruner.momentum, pruner.clock, pruner.seed
    new = Final(*parts, before=before)
    new.t, new.epoch, new.period, new.flips = pruner.t, pruner.epoch, pruner.period, pruner.flips
    return new


def is_final(state: Mapping[str, Any] | None) -> bool:
    """Whether a pruner's state is that of a `Final`."""
    return state is not None and "slimmed_at" in state["extra"]


def _tell(report: Report, step: int, again: bool) -> None:
    if report.removed:
        log.info(
            "Slimmed before step %d: %d channels gone, %d parameters instead of %d per encoder.",
            *(step, report.removed, *reversed(report.parameters)),
        )
    elif not again:
        reasons = [f"{name}: {why}" for name, why in report.obstacles.items()]
        log.warning(
            "Nothing to slim before step %d: no channel is empty in all encoders and without "
            "effect (%s).",
            *(step, "; ".join(reasons[:3]) or "masks keep weights in every channel"),
        )


def check(config: SparseConfig, encoders: Sequence[Encoder]) -> None:
    """Raise ConfigError for a run whose encoders cannot change size."""
    if any(isinstance(encoder, LatentEncoder) for encoder in encoders):
        raise ConfigError(
            f"sparse.slim_at is for methods that store pruned weights as zero, and "
            f"sparse.name={config.name} keeps them alive here: leave it out."
        )
    if mask_agreement.world_size() > 1:
        raise ConfigError(
            "sparse.slim_at: DistributedDataParallel cannot follow parameters that change size. "
            "Train on one device, or slim the finished checkpoint: python3 -m sparse_ext.export "
            "slim CKPT."
        )
