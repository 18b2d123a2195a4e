# SPDX-License-Identifier: MIT
"""What to prune in an encoder, and how much: methods, budgets, one goal per sparsity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from solo.errors import ConfigError, did_you_mean
from sparse_ext.masks.granularity import Block, Granularity, parse
from sparse_ext.masks.prunable import Selection, select
from sparse_ext.prune import scores
from sparse_ext.prune.budgets import layer_budgets, unit_share
from sparse_ext.pruning.units import Units

#: methods by name; value: whether they look at the inputs of the layers
METHODS = {"magnitude": False, "lamp": False, "taylor": False, "wanda": True, "sparsegpt": True}


@dataclass(frozen=True)
class Settings:
    """How an encoder is pruned.

    Attributes:
        method: one of `METHODS`.
        sparsities: shares of zero weights over the prunable layers, one result each.
        granularity: what is pruned as one, as `sparse.granularity` writes it.
        allocation: how layers get their budgets (`sparse_ext.prune.budgets.rules`); None = `global`
            for methods whose scores compare layers, else `lamp`.
        stem_dense: leave the first convolution (a ViT's patch embedding) dense.
        exclude: globs of layer names that stay dense.
        seed: of drawn views and positions.
    """

    method: str = "sparsegpt"
    sparsities: tuple[float, ...] = (0.8,)
    granularity: str = "element"
    allocation: str | None = None
    stem_dense: bool = True
    exclude: tuple[str, ...] = ()
    seed: int = 0

    @property
    def rule(self) -> str:
        """The allocation that applies."""
        return self.allocation or ("lamp" if METHODS[self.method] else "global")


@dataclass(frozen=True)
class Goal:
    """The budgets of one sparsity.

    Attributes:
        sparsity: share of zero weights over the prunable layers.
        kept: whole units that each layer keeps.
    """

    sparsity: float
    kept: dict[str, int]


@dataclass(frozen=True)
class Plan:
    """What will be pruned.

    Attributes:
        settings: the user's.
        granularity: what a unit is.
        selection: prunable layers, and why the others stay dense.
        scores: per weight and layer, larger is kept; empty for methods that need layer inputs.
        goals: one per sparsity.
    """

    settings: Settings
    granularity: Granularity
    selection: Selection
    scores: dict[str, Tensor]
    goals: tuple[Goal, ...]

    @property
    def layers(self) -> dict[str, Any]:
        """The prunable layers by name."""
        return self.selection.layers


def make_plan(encoder: nn.Module, batches: list[Tensor], settings: Settings) -> Plan:
    """Choose the layers, score what can be scored at once, and deal out budgets.

    Args:
        encoder: dense, in evaluation mode.
        batches: calibration images (N, 3, H, W), normalised; only `taylor` reads them here.
        settings: see `Settings`.

    Raises:
        ConfigError: an unknown method or rule, a sparsity or granularity that cannot be.
    """
    if settings.method not in METHODS:
        hint = did_you_mean(settings.method, METHODS)
        raise ConfigError(f"--method {settings.method} is unknown. {hint}")
    granularity = parse(settings.granularity)
    if (
        settings.method == "sparsegpt"
        and isinstance(granularity, Block)
        and (granularity.merge_kernel or granularity.pad)
    ):
        raise ConfigError(
            f"--method sparsegpt prunes blocks at one kernel position: --granularity "
            f"block{granularity.size} instead of {granularity}, or another method."
        )
    shares = [unit_share(granularity, sparsity) for sparsity in settings.sparsities]
    selection = select(encoder, settings.stem_dense, settings.exclude, granularity)
    layers: dict[str, Any] = selection.layers  # type: ignore[assignment]
    weights = {name: layer.weight.detach() for name, layer in layers.items()}
    units = Units(granularity, {name: tuple(weight.shape) for name, weight in weights.items()})
    found = _scores(encoder, selection, weights, batches, settings)
    goals = [
        Goal(sparsity, layer_budgets(units, weights, share, settings.rule, found or None))
        for sparsity, share in zip(settings.sparsities, shares, strict=True)
    ]
    return Plan(settings, granularity, selection, found, tuple(goals))


def _scores(
    encoder: nn.Module,
    selection: Selection,
    weights: dict[str, Tensor],
    batches: list[Tensor],
    settings: Settings,
) -> dict[str, Tensor]:
    if settings.method == "magnitude":
        return {name: weight.float().abs() for name, weight in weights.items()}
    if settings.method == "lamp":
        return {name: scores.lamp(weight) for name, weight in weights.items()}
    if settings.method == "taylor":
        return scores.taylor(encoder, selection.layers, batches, settings.seed)
    return {}
