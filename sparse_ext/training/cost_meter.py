# SPDX-License-Identifier: MIT
"""Cost of a sparse run while it trains: MACs now, and what training has cost so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from solo.compat import writes
from solo.errors import ConfigError
from sparse_ext.cost.conventions import training_ratios
from sparse_ext.cost.per_layer import CostTable, count
from sparse_ext.masks.masked_layers import Masked


class CostMeter:
    """Adds up, over optimizer steps, the MACs that the masks of each step ask for.

    The conventions of `sparse_ext.cost.conventions` are linear in these MACs, so two sums say what
    any of them makes of the run up to now, whatever path the masks took.

    Attributes:
        steps: optimizer steps counted.
        sums: MAC ratios added up, one per encoder, online first.
        table: cost of the online encoder; None until the first batch, or if no batch has images.
        dense: MACs per image of the full encoder with every weight; None until they are known.
        looked: whether a batch has been seen since the encoders last changed size.
    """

    def __init__(self) -> None:
        self.looked = False
        self.steps = 0
        self.sums: list[float] = []
        self.table: CostTable | None = None
        self.dense: int | None = None
        self._watched: list[_Watched] = []

    def look(self, encoders: Sequence[nn.Module], batch: Any) -> None:
        """Take the MACs of every layer from one forward pass, at the size of the first view.

        Args:
            encoders: masked ones of equal architecture, online first.
            batch: of the run; what holds no image leaves the meter off.
        """
        self.looked = True
        shape = image_shape(batch)
        if shape is None:
            return
        try:
            self.table = count(encoders[0], shape)
        except ConfigError:  # an encoder with other inputs than images
            return
        self.dense = self.dense or self.table.macs_dense
        self._watched = [_Watched(encoder, self.table) for encoder in encoders]
        self.sums = self.sums or [0.0] * len(encoders)

    def step(self) -> None:
        """Count one optimizer step, with the masks that it was made with."""
        if self.dense is not None and self._watched:
            self.steps += 1
            pairs = zip(self.sums, self._watched, strict=True)
            self.sums = [total + encoder.training / self.dense for total, encoder in pairs]

    def figures(self) -> dict[str, float]:
        """MACs per image as evaluation sees the encoders now; training cost so far over dense."""
        if self.dense is None or not self._watched or not self.steps:
            return {}
        macs = [encoder.macs for encoder in self._watched]
        figures = {"macs_dense": float(self.dense), "macs_effective": macs[0]}
        if len(macs) > 1:
            figures["macs_effective_momentum"] = macs[1]
        ratios = training_ratios(*(total / self.steps for total in self.sums))
        return figures | {f"training_cost_{name}": ratio for name, ratio in ratios.items()}

    def state_dict(self) -> dict[str, Any]:
        """What has been counted so far, for a checkpoint."""
        return {"steps": self.steps, "sums": list(self.sums), "dense": self.dense}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.steps, self.sums = state["steps"], list(state["sums"])
        self.dense = state.get("dense")


class _Watched:
    """Effective MACs of one encoder, counted anew when one of its masks has been written to.

    Attributes:
        macs: per image with the weights that evaluation uses now.
        training: the same of a training pass.
    """

    def __init__(self, encoder: nn.Module, table: CostTable) -> None:
        modules = dict(encoder.named_modules())
        costs = [x for x in table.layers if isinstance(modules[x.name], Masked)]
        self.layers = [modules[x.name] for x in costs]
        self.per_weight = [x.macs_dense / x.weights for x in costs]
        self.rest = table.macs_effective - sum(x.macs_effective for x in costs)
        self._seen: list[tuple[int, int]] = []
        self._macs = (0.0, 0.0)

    @property
    def macs(self) -> float:
        return self._counted()[0]

    @property
    def training(self) -> float:
        return self._counted()[1]

    def _counted(self) -> tuple[float, float]:
        seen = [(id(layer.mask), writes(layer.mask)) for layer in self.layers]  # type: ignore
        if seen != self._seen:
            used = zip(*map(_used, self.layers), strict=True)
            self._macs = tuple(  # type: ignore[assignment]
                self.rest + sum(n * m for n, m in zip(numbers, self.per_weight, strict=True))
                for numbers in used
            )
            self._seen = seen
        return self._macs


def _used(layer: nn.Module) -> tuple[float, float]:
    """Weights that evaluation and a training pass use: kept ones, in an unmasked branch all.

    With several branches (`sparse_ext.masks.living_weights`) a training pass is the mean of the
    first view and the others, which is that of two views.
    """
    mask: Tensor = layer.mask  # type: ignore[assignment]
    kept, branches = int(mask.count_nonzero()), getattr(layer, "branches", None)
    if branches is None:
        return kept, kept
    masked = branches.evaluation, branches.first, branches.others
    last, first, others = (kept if seen else mask.numel() for seen in masked)
    return last, (first + others) / 2


def image_shape(batch: Any) -> tuple[int, ...] | None:
    """(C, H, W) of the first image tensor in a batch, however nested; None if there is none."""
    if isinstance(batch, Tensor):
        image = batch.ndim == 4 and batch.is_floating_point()
        return tuple(batch.shape[1:]) if image else None
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    if isinstance(batch, (list, tuple)):
        return next((shape for x in batch if (shape := image_shape(x)) is not None), None)
    return None
