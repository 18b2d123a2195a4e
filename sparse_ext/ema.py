# SPDX-License-Identifier: MIT
"""The momentum encoder's update when both encoders carry masks (section 0.7 of the specification).

A plain average of stored weights pulls every weight that the student has pruned towards zero, at
the rate of the average, so the denser teacher silently becomes as sparse as the student. Averaging
the *latents* (stored weight + shadow) keeps both on the same dense trajectory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from solo.utils.momentum import MomentumUpdater
from sparse_ext.encoder import masked_layers


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

    @torch.no_grad()
    def update(self, online_net: nn.Module, momentum_net: nn.Module) -> None:
        """Move `momentum_net` towards `online_net`; masked layers by the chosen mode.

        With disjoint supports of weight and shadow, the average of latents is the average of the
        stored weights plus the average of the shadows.
        """
        online, momentum = masked_layers(online_net), masked_layers(momentum_net)
        pairs = [(online[name], layer) for name, layer in momentum.items() if name in online]
        held = [m.weight.clone() for _, m in pairs] if self.mode == "hold" else [None] * len(pairs)
        self.inner.update(online_net, momentum_net)
        for (student, teacher), before in zip(pairs, held, strict=True):
            if self.mode == "latent":
                teacher.shadow.lerp_(student.shadow, 1 - self.cur_tau)
                latent = teacher.shadow.add_(teacher.weight)
                teacher.weight.copy_(latent)
                latent.masked_fill_(teacher.mask, 0)
            elif before is not None:
                both = student.mask & teacher.mask
                teacher.weight.copy_(torch.where(both, teacher.weight, before))
            teacher.weight.masked_fill_(~teacher.mask, 0)
