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

import gc
from collections.abc import Sequence

from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from solo.errors import ConfigError
from solo.utils import ranks
from sparse_ext.config.sections import SparseConfig
from sparse_ext.masks.channels.removal import Report, shrink_
from sparse_ext.masks.encoder import Encoder
from sparse_ext.masks.living_weights import LatentEncoder
from sparse_ext.pruning.log import log
from sparse_ext.pruning.pruner import Pruner, Slimmed
from sparse_ext.pruning.reaching import report_end


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
        if pruner.latest_start is not None and self.at <= pruner.t_end:
            raise ConfigError(
                f"sparse.slim_at={config.slim_at} is step {self.at}, but sparsity grows until step "
                f"{pruner.t_end} (sparse.ramp_end={config.ramp_end} of {clock.steps} steps): slim "
                f"later, or end the ramp earlier."
            )

    def due(self, pruner: Pruner) -> bool:
        """Whether to slim before the step about to be made."""
        if pruner.t < self.at or (pruner.t - self.at) % pruner.period:
            return False
        return pruner.slimmed is None or pruner.slimmed.at < pruner.t

    def __call__(self, pruner: Pruner, optimizer: Optimizer) -> tuple[Pruner, Report]:
        """Slim the encoders in place; returns the pruner that leaves their masks as they are.

        Args:
            pruner: the method at work, or the pruner of the last time.
            optimizer: of the run.
        """
        modules = [encoder.module for encoder in pruner.encoders]
        for module in modules:  # running statistics are each rank's own, and decide as well
            ranks.share(module.buffers())
        before = pruner.online.masks.n if pruner.slimmed is None else pruner.slimmed.before
        report_end(pruner)
        full = held([*modules], optimizer)
        report = shrink_(modules, optimizer, train=True, multiple=pruner.config.multiple)
        parts = pruner.config, pruner.online, pruner.momentum, pruner.clock, pruner.seed
        new = Pruner(*parts, slimmed=Slimmed(before, pruner.t))
        new.t, new.epoch = pruner.t, pruner.epoch
        new.period, new.flips = pruner.period, pruner.flips
        sizes = held([*modules], optimizer), full
        _tell(report, pruner.t, pruner.slimmed is not None, sizes)
        return new, report


def held(modules: Sequence[nn.Module], optimizer: Optimizer) -> int:
    """Bytes of the tensors of some modules and of an optimizer's state."""
    tensors = [t for m in modules for t in (*m.parameters(), *m.buffers())]
    for state in optimizer.state.values():
        tensors += [value for value in state.values() if isinstance(value, Tensor)]
    return sum(t.numel() * t.element_size() for t in tensors)


def _tell(report: Report, step: int, again: bool, sizes: tuple[int, int]) -> None:
    if report.removed:
        log.info(
            "Slimmed before step %d: %d channels gone, %d parameters instead of %d per encoder; "
            "%.2f MB of weights, buffers and optimizer state instead of %.2f MB.",
            *(step, report.removed, *reversed(report.parameters)),
            *(size / 1e6 for size in sizes),
        )
    elif not again:
        reasons = [f"{name}: {why}" for name, why in report.obstacles.items()]
        log.warning(
            "Nothing to slim before step %d: no channel is empty in all encoders and without "
            "effect (%s).",
            *(step, "; ".join(reasons[:3]) or "masks keep weights in every channel"),
        )


def wrap_again(strategy: Strategy) -> None:
    """Let DistributedDataParallel average the gradients of parameters that have changed size."""
    wrapped = strategy.model
    if isinstance(wrapped, DistributedDataParallel) and isinstance(strategy, DDPStrategy):
        strategy.model = wrapped.module
        del wrapped
        gc.collect()  # its hooks on the parameters that have stayed go with it
        strategy.configure_ddp()


def check(config: SparseConfig, encoders: Sequence[Encoder]) -> None:
    """Raise ConfigError for a run whose encoders cannot change size."""
    if any(isinstance(encoder, LatentEncoder) for encoder in encoders):
        raise ConfigError(
            f"sparse.slim_at is for methods that store pruned weights as zero, and "
            f"sparse.name={config.name} keeps them alive here: leave it out."
        )
