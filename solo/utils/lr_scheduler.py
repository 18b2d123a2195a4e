# SPDX-License-Identifier: MIT
"""Linear warm-up followed by a cosine, and groups whose learning rate stays where it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ExponentialLR,
    LRScheduler,
    MultiStepLR,
    ReduceLROnPlateau,
)

from solo.errors import CheckpointError


class LinearWarmupCosineAnnealingLR(LRScheduler):
    """Warm-up from `warmup_start_lr` to the group's rate, then a cosine down to `eta_min`.

    At step e: start + e (base - start) / (W - 1) while e < W, never above base; then
    eta_min + (base - eta_min)(1 + cos(pi (e - W) / (T - W))) / 2.
    A group's `lr_scale` (layer-wise decay) scales `warmup_start_lr` and `eta_min` with its rate.

    Args:
        optimizer: whose groups are driven.
        warmup_epochs: W, in whatever unit `step` is called; need not be an integer.
        max_epochs: T, in the same unit.
        warmup_start_lr: rate at step 0.
        eta_min: rate at step T.
        last_epoch: step to continue after.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_epochs: float,
        max_epochs: float,
        warmup_start_lr: float = 0.0,
        eta_min: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        self.warmup_epochs = warmup_epochs
        self.max_epochs = max_epochs
        self.warmup_start_lr = warmup_start_lr
        self.eta_min = eta_min
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """The rates of the current step; a closed form, so that a resumed run meets them again."""
        groups = zip(self.base_lrs, self.optimizer.param_groups, strict=True)
        return [self._rate(base, group.get("lr_scale", 1.0)) for base, group in groups]

    def _get_closed_form_lr(self) -> list[float]:
        return self.get_lr()

    def _rate(self, base: float, lr_scale: float) -> float:
        start, floor = self.warmup_start_lr * lr_scale, self.eta_min * lr_scale
        step, warmup = self.last_epoch, self.warmup_epochs
        if step < warmup:
            done = min(step / (warmup - 1), 1.0) if warmup > 1 else 0.0
            return start + done * (base - start)
        length = self.max_epochs - warmup
        phase = math.pi * (step - warmup) / length if length > 0 else math.pi
        return floor + 0.5 * (base - floor) * (1 + math.cos(phase))


def static_lr(
    get_lr: Callable[[], Sequence[float]],
    param_group_indexes: Sequence[int],
    lrs_to_replace: Sequence[float],
) -> list[float]:
    """What `get_lr` returns, with the rates of some groups replaced."""
    rates = list(get_lr())
    for index, rate in zip(param_group_indexes, lrs_to_replace, strict=True):
        rates[index] = rate
    return rates


class _Resumed:
    """Scheduler mixin: a resumed run takes the step from its checkpoint, and all else of its own.

    torch would take everything: the length, the base rates and the milestones of the run that wrote
    it, whatever the configuration of the run that goes on says. Where nothing has changed, the
    rates are those of the checkpoint to the last bit.
    """

    _OWN = (
        *("base_lrs", "gamma", "milestones"),
        *("warmup_epochs", "max_epochs", "warmup_start_lr", "eta_min"),
    )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on at the step of `state_dict`.

        Raises:
            CheckpointError: it is the state of another kind of schedule.
        """
        own = {name: getattr(self, name) for name in self._OWN if hasattr(self, name)}
        if odd := [name for name in self._OWN if (name in own) != (name in state_dict)]:
            raise _other_schedule(odd[0])
        same = all(own[name] == state_dict[name] for name in own)
        super().load_state_dict({**state_dict, **own})  # type: ignore[misc]
        if not same:
            self._last_lr = list(self._get_closed_form_lr())
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate


def _other_schedule(odd: str) -> CheckpointError:
    return CheckpointError(
        f"The checkpoint's learning rates followed another schedule (only one of the two has "
        f"{odd}): set scheduler.name as in the run that wrote it."
    )


class _StaticGroups:
    """Scheduler mixin: the groups at `static_indexes` keep their own rate for the whole run.

    Plain data in the scheduler's state, where solo-learn stores a pickled bound method that
    makes its SimSiam checkpoints unreadable.
    """

    def __init__(self, *args, static_indexes: Sequence[int] = (), **kwargs):
        self.static_indexes = list(static_indexes)
        super().__init__(*args, **kwargs)

    def get_lr(self) -> list[float]:
        own = [self.base_lrs[index] for index in self.static_indexes]
        return static_lr(super().get_lr, self.static_indexes, own)

    def _get_closed_form_lr(self) -> list[float]:
        own = [self.base_lrs[index] for index in self.static_indexes]
        return static_lr(super()._get_closed_form_lr, self.static_indexes, own)


class LinearWarmupMultiStepLR(LRScheduler):
    """Linear warm-up (as above), then the group's rate, divided by ten at each milestone.

    Args:
        optimizer: whose groups are driven.
        warmup_epochs: W, in whatever unit `step` is called; need not be an integer.
        milestones: steps from which the rate is a tenth of what it was.
        warmup_start_lr: rate at step 0, if W is above 0.
        last_epoch: step to continue after.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_epochs: float,
        milestones: Sequence[float],
        warmup_start_lr: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        self.warmup_epochs = warmup_epochs
        self.milestones = sorted(milestones)
        self.warmup_start_lr = warmup_start_lr
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """The rates of the current step, in closed form."""
        step, warmup, start = self.last_epoch, self.warmup_epochs, self.warmup_start_lr
        if step < warmup:
            done = min(step / (warmup - 1), 1.0) if warmup > 1 else 0.0
            return [start + done * (base - start) for base in self.base_lrs]
        passed = sum(milestone <= step for milestone in self.milestones)
        return [base * 0.1**passed for base in self.base_lrs]

    def _get_closed_form_lr(self) -> list[float]:
        return self.get_lr()


class WarmupCosine(_Resumed, _StaticGroups, LinearWarmupCosineAnnealingLR):
    """`LinearWarmupCosineAnnealingLR` that leaves the groups in `static_indexes` at their rate."""


class MultiStep(_Resumed, _StaticGroups, MultiStepLR):
    """`MultiStepLR` that leaves the groups in `static_indexes` at their rate."""


class WarmupMultiStep(_Resumed, _StaticGroups, LinearWarmupMultiStepLR):
    """`LinearWarmupMultiStepLR` that leaves the groups in `static_indexes` at their rate."""


class Exponential(_Resumed, ExponentialLR):
    """`ExponentialLR` that goes on with its own rates and factor."""


class Plateau(ReduceLROnPlateau):
    """`ReduceLROnPlateau` whose reductions, after a resume, are those of its own first rates.

    What it has reduced is not known from the step, so the rates of the checkpoint are kept, by as
    much larger or smaller as the configured rate is.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__(optimizer)
        self.base_lrs = [group["lr"] for group in optimizer.param_groups]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the reductions of `state_dict`.

        Raises:
            CheckpointError: it is the state of another kind of schedule.
        """
        if "num_bad_epochs" not in state_dict:
            raise _other_schedule("num_bad_epochs")
        own = self.base_lrs
        super().load_state_dict({**state_dict, "base_lrs": own})
        before = state_dict.get("base_lrs") or own
        for group, old, new in zip(self.optimizer.param_groups, before, own, strict=True):
            if old != new:
                group["lr"] = group["lr"] * new / old if old else new
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]
