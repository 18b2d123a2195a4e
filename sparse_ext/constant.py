# SPDX-License-Identifier: MIT
"""What the rivals of SyncCP share: constant sparsity, swapping by the gradient of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Optimizer

from solo.errors import CheckpointError
from sparse_ext.grow import drop_and_regrow
from sparse_ext.messages import log
from sparse_ext.pruner import Pruner
from sparse_ext.schedules import cosine_fraction
from sparse_ext.units import Kept


class Constant(Pruner):
    """Final sparsity from the start; masks change at most by `due`, `online_masks`, ..."""

    def plan(self) -> None:
        """There is no ramp."""
        self.begins = list(self.finals)
        self.aims = list(self.finals)


class EpochMasks(Constant):
    """The masks of `initial_masks`, made anew at the start of every epoch."""

    def plan(self) -> None:
        """The first epoch's masks are the initial ones."""
        super().plan()
        self.masked_epoch = 0

    def begin_batch(self, epoch: int, optimizer: Optimizer | None = None) -> bool:
        """New masks once an epoch."""
        if self.masked_epoch >= epoch:
            return False
        self.masked_epoch = epoch
        pairs = zip(self.encoders, self.finals, strict=True)
        self._apply([self.initial_masks(*pair) for pair in pairs], optimizer)
        return True

    def extra_state(self) -> dict[str, Any]:
        """The epoch whose masks are in place."""
        return {"masked_epoch": self.masked_epoch}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take over `extra_state`."""
        self.masked_epoch = state["masked_epoch"]


class InstantRegrowth(Pruner):
    """Regrowth by the magnitude of the gradient of the very step (RigL, GraNet).

    Attributes:
        gradient: |dense gradient| of the step under way, where masks are due.
    """

    gradient: Mapping[str, Tensor] = {}

    @classmethod
    def keeps_latents(cls, config: Any, shared: bool) -> bool:
        """N:M groups are ranked by, and choose their members from, what they had before."""
        ranked = cls.stores_zeros and config.some_survive
        return ranked or super().keeps_latents(config, shared)

    def wants_gradients(self) -> bool:
        """At the steps that change masks only."""
        return self.due()

    def observe(self, finite: Tensor) -> None:
        """Keep |gradient| for this step."""
        self.gradient = {
            name: torch.zeros_like(layer.weight)
            if layer.weight.grad is None
            else layer.weight.grad.abs()
            for name, layer in self.online.layers.items()
        }

    def swap(self, kept: Kept, fraction: float, rounding: Callable[[float], int]) -> Kept:
        """Drop that share of each layer's units by magnitude, grow as many by gradient."""
        wanted = self.units.pool(self.gradient)
        self.gradient = {}
        return drop_and_regrow(kept, self.magnitudes(self.online), wanted, fraction, rounding)


def drop_fraction(config: Any, t: int, total: int) -> float:
    """Share of a layer that is swapped at step `t`: cosine over `total` steps."""
    return cosine_fraction(t, max(1, total), config.drop_start, config.drop_end)


def fraction_of(fraction: float, steps: int) -> int:
    """The step at which that fraction of a run is over."""
    return math.floor(fraction * steps + 0.5)


def load_dense(module: LightningModule, path: str | None, method: str) -> None:
    """Start from the weights of a dense run: encoders, and heads as far as the file has them.

    Raises:
        CheckpointError: if the file cannot be read, or is no dense run of these encoders.
    """
    if path is None:
        log.warning(
            "%s prunes the weights as they are. To start from a trained network, give "
            "sparse.dense_checkpoint.",
            method,
        )
        return
    from solo.checkpoints.loading import read_checkpoint

    own, state = module.state_dict(), read_checkpoint(path)["state_dict"]
    encoders = {k for k in own if k.startswith(("backbone.", "momentum_backbone."))}
    needed = {k for k in encoders if not k.endswith((".mask", ".shadow", ".score"))}
    missing = sorted(k for k in needed if k not in state or state[k].shape != own[k].shape)
    sparse = [k for k in state if k.endswith(".mask")]
    if missing or sparse:
        what = f"it has masks ({sparse[0]})" if sparse else f"{missing[:3]} are missing or differ"
        raise CheckpointError(
            f"sparse.dense_checkpoint={path} does not fit: {what}. It must be the checkpoint of a "
            f"dense run with the same backbone and method."
        )
    found = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
    with torch.no_grad():
        for key, value in found.items():
            own[key].copy_(value)
    log.info("%s: %d of %d tensors from %s.", method, len(found), len(own), path)
