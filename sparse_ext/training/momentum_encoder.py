# SPDX-License-Identifier: MIT
"""The momentum encoder's update when both encoders carry masks (section 0.7 of the specification).

A plain average of stored weights pulls every weight that the student has pruned towards zero, at
the rate of the average, so the denser teacher silently becomes as sparse as the student. Averaging
the *latents* (stored weight + shadow) keeps both on the same dense trajectory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from solo.utils.encoders import encoders_of
from solo.utils.momentum import MomentumUpdater
from sparse_ext.masks.encoder import switch_off_
from sparse_ext.masks.masked_layers import masked_layers
from sparse_ext.training.teachers import Follower


class MaskedEMA(MomentumUpdater):
    """Takes the place of a module's `momentum_updater` and keeps its rate and schedule.

    Args:
        inner: the updater in place so far; still does the averaging and owns `cur_tau`.
        mode: `latent`, `leaky` or `hold` (see `sparse_ext.config.SparseConfig.ema_mode`).
    """

    def __init__(self, inner: Any, mode: str) -> None:
        self.inner = inner
        self.mode = mode

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # while unpickling or copying
            raise AttributeError(name)
        return getattr(self.inner, name)

    @property
    def cur_tau(self) -> float:  # type: ignore[override]
        """Weight of the history, now."""
        return self.inner.cur_tau

    @cur_tau.setter
    def cur_tau(self, value: float) -> None:
        self.inner.cur_tau = value

    def update_tau(self, *args: Any, **kwargs: Any) -> None:
        """Advance the schedule of the rate."""
        self.inner.update_tau(*args, **kwargs)

    def update(self, online_net: nn.Module, momentum_net: nn.Module) -> None:
        """Move `momentum_net` towards `online_net`; masked layers by the chosen mode."""
        with masks_respected(online_net, momentum_net, self.mode):
            self.inner.update(online_net, momentum_net)


class MaskedHook:
    """Stands in for a hook of a module that averages its momentum encoder by itself.

    Args:
        module: has an encoder and a momentum encoder.
        name: of its hook.
        mode: as for `MaskedEMA`.
        follower: looks after what the module averages elsewhere.
    """

    def __init__(self, module: Any, name: str, mode: str, follower: Follower) -> None:
        self.module = module
        self.name = name
        self.mode = mode
        self.follower = follower

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        online, momentum = encoders_of(self.module).values()
        self.follower.follow()  # callbacks come before their module
        with masks_respected(online, momentum, self.mode):
            result = getattr(type(self.module), self.name)(self.module, *args, **kwargs)
        self.follower.remember()
        return result


def install(module: Any, mode: str) -> Follower | None:
    """Make the update of the momentum encoder respect masks, wherever the module does it.

    That is `module.momentum_updater`, as in solo's methods, or else `on_train_batch_end`; in the
    training step nothing but its effect is seen.

    Returns:
        what looks after updates in the training step; None with an updater.
    """
    updater = getattr(module, "momentum_updater", None)
    if updater is None:
        if isinstance(module.on_train_batch_end, MaskedHook):
            return module.on_train_batch_end.follower
        online, momentum = encoders_of(module).values()
        follower = Follower(online, momentum, mode)
        module.on_train_batch_end = MaskedHook(module, "on_train_batch_end", mode, follower)
        return follower
    if not isinstance(updater, MaskedEMA):
        module.momentum_updater = MaskedEMA(updater, mode)
    return None


@contextmanager
def masks_respected(online: nn.Module, momentum: nn.Module, mode: str) -> Iterator[None]:
    """Whatever averages `momentum` towards `online` inside leaves the masks in force.

    `latent`: inside, both networks show their latents (weight + shadow; their supports are
    disjoint, so nothing is rounded). `hold`: weights move only where both masks are 1. `leaky`:
    the stored weights move, zeros included.
    """
    students, teachers = masked_layers(online), masked_layers(momentum)
    pairs = [(students[name], layer) for name, layer in teachers.items() if name in students]
    before = [teacher.weight.detach().clone() for _, teacher in pairs] if mode == "hold" else []
    if mode == "latent":
        _show([layer for pair in pairs for layer in pair])
    try:
        yield
    finally:
        _hide(pairs, before, mode)


@torch.no_grad()
def _show(layers: list[Any]) -> None:
    for layer in layers:
        layer.weight.add_(layer.shadow)


@torch.no_grad()
def _hide(pairs: list[tuple[Any, Any]], before: list[Tensor], mode: str) -> None:
    for i, (student, teacher) in enumerate(pairs):
        if mode == "latent":
            switch_off_(student.weight, student.mask)
            switch_off_(teacher.shadow.copy_(teacher.weight), ~teacher.mask)
        elif mode == "hold":
            both = student.mask & teacher.mask
            teacher.weight.copy_(torch.where(both, teacher.weight, before[i]))
        switch_off_(teacher.weight, teacher.mask)
