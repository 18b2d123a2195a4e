# SPDX-License-Identifier: MIT
"""What units are worth: the part of a pruner that scores them by weights or gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparse_ext.config.scorer_names import Scorer, scorer_named
from sparse_ext.masks.encoder import Encoder
from sparse_ext.pruning import coupled_units
from sparse_ext.pruning.priced_units import make_units
from sparse_ext.pruning.regrow import drop_and_regrow
from sparse_ext.pruning.scores import scorers
from sparse_ext.pruning.scores.empty_filters import fair_gradients
from sparse_ext.pruning.units import Kept, Units


class Ranking:
    """Scores and ranks the units of one or two encoders.

    Args:
        config: the method's configuration.
        online: the encoder that is trained.
        momentum: its EMA teacher, or None.
        single: units are single weights whatever the granularity is, and none are coupled: the
            masks are final, and the widths of a slimmed encoder may be no multiples of a block.

    Attributes:
        t: optimizer steps done.
        units: what is ranked, kept and dropped.
        scorer: what a weight is worth (`sparse.score`); the largest are kept.
        gradient: of the online encoder's weights, dense, in a step that changes masks.
    """

    #: what brings units back: |gradient| of the step (`step`), its running mean (`mean`), nothing
    growth: str | None = None
    #: layer budgets of masks by score; `global` compares all layers
    allocation: str = "global"
    #: share of the past in the running mean of |gradient|; None = only that of the last update
    history: float | None = None
    #: the same where only the score asks for that mean
    score_history: ClassVar[float] = 0.9
    #: steps between two gradients in that running mean; `history` is the past's share over all
    every: int = 1

    def __init__(
        self, config: Any, online: Encoder, momentum: Encoder | None, single: bool = False
    ) -> None:
        self.config: Any = config
        self.online, self.momentum = online, momentum
        self.t = 0
        self.gradient: Mapping[str, Tensor] = {}
        self.scorer: Scorer = scorer_named(config.ranking)
        self.units = (
            Units("element", online.masks.shapes)
            if single
            else make_units(config, online, regrows=self.growth is not None)
        )
        coupled_units.share_companions(config, self.encoders, found=not single)

    @property
    def encoders(self) -> list[Encoder]:
        """The masked encoders, the online one first."""
        return [self.online] if self.momentum is None else [self.online, self.momentum]

    def due(self) -> bool:
        """Whether masks change after the step under way."""
        return False

    def values(self, encoder: Encoder, scorer: Scorer | None = None) -> dict[str, Tensor]:
        """What each unit of an encoder is worth; the largest are kept."""
        scorer = scorer or self.scorer
        pooled = self.units.pool(self.scores(encoder, scorer), total=scorer.of_sum is not None)
        return {name: scorer.finish(value) for name, value in pooled.items()}

    def scores(self, encoder: Encoder, scorer: Scorer | None = None) -> dict[str, Tensor]:
        """What each weight of an encoder is worth, by `scorer` or the run's own; with `of_sum` what
        is summed over a unit.

        A momentum encoder has no gradient: its weights are scored with the online encoder's.
        """
        scorer = scorer or self.scorer
        latents = encoder.latents
        if scorer.needs == "weight":
            return {name: scorer(weight) for name, weight in latents.items()}
        beside = self.online.scores if scorer.needs == "mean_gradient" else self.gradient
        return {name: scorer(weight, beside[name]) for name, weight in latents.items()}

    def best(
        self,
        encoder: Encoder,
        sparsity: float,
        eligible: Kept | None = None,
        scorer: Scorer | None = None,
    ) -> Kept:
        """The units of largest score, exactly the budget; each layer has its own by `allocation`.

        Args:
            encoder: whose units they are.
            sparsity: share of the units that goes.
            eligible: which units may be kept; by default any.
            scorer: by default the run's own.
        """
        values = self.values(encoder, scorer)

        def choose(share: float) -> Kept:
            if self.allocation == "global":
                return self.units.largest(values, share, eligible)
            if self.allocation == "isomorphic":
                return self.units.largest_per_kind(values, share, eligible)
            return self.units.largest_per_layer(values, share, self.allocation, eligible)

        return self.units.within(choose, sparsity, eligible)

    def swap(
        self,
        encoder: Encoder,
        kept: Kept,
        fraction: float,
        rounding: Callable[[float], int] = math.ceil,
    ) -> Kept:
        """Drop that share of each layer's units by score, grow as many by gradient.

        Blocks and filters grow by `fair_gradients`, single weights by the gradient as it is.
        """
        wanted: Mapping[str, Tensor] = self.online.scores if self.growth == "mean" else {}
        wanted = wanted or {n: scorers.gradient(g) for n, g in self.gradient.items()}
        if not self.units.single:  # whole filters compete: one that is empty must not win by that
            wanted = fair_gradients(wanted, self.online)
        values, wanted = self.values(encoder), self.units.pool(wanted)
        return drop_and_regrow(kept, values, wanted, fraction, rounding)

    def wants_gradients(self) -> bool:
        """Whether `observe` is to see the gradients of the step under way."""
        if self._averages:
            return True
        grows = self.growth is not None and not (self.growth == "mean" and self.history is not None)
        return (grows or self._scores_by_step) and self.due()

    @property
    def _scores_by_mean(self) -> bool:
        return self.scorer.needs == "mean_gradient"

    @property
    def _scores_by_step(self) -> bool:
        """Whether scores are made of the gradient (or curvature) of one step."""
        return self.scorer.needs not in ("weight", "mean_gradient")

    @property
    def _averages(self) -> bool:
        """Whether this step's gradient goes into the running mean, update or not."""
        return self.gradient_share > 0 and self.t % self.every == 0

    @property
    def gradient_share(self) -> float:
        """About which share of all steps wants gradients of pruned weights."""
        wanted = self.growth == "mean" or self._scores_by_mean
        return 1 / self.every if wanted and self.history is not None else 0.0

    def observe(self, finite: Tensor) -> None:
        """Look at the dense, averaged, unscaled gradients of the step under way.

        Args:
            finite: 0-dim bool on the gradients' device; False if any of them is NaN or infinite,
                and then the step does not count.
        """
        layers = self.online.layers
        if self._averages or (self.growth == "mean" and self.history is None):
            graded = [layer for layer in layers.values() if layer.weight.grad is not None]
            grads = [layer.weight.grad for layer in graded]
            scorers.ema_gradient_([m.score for m in graded], grads, self.history or 0.0, finite)
        if (self.growth == "step" or self._scores_by_step) and self.due():
            self.gradient = {
                name: torch.zeros_like(layer.weight)
                if layer.weight.grad is None
                else layer.weight.grad.clone()
                for name, layer in layers.items()
            }

    def look(self, probe: Any) -> None:
        """Take what the scorer needs from the first batch.

        Args:
            probe: a `sparse_ext.pruning.scores.first_batch.Probe`.
        """
        if self.scorer.needs == "curvature":
            self.gradient = probe.second_order(scorers.hessian_gradient)
        elif self.scorer.needs != "weight":
            self.gradient = probe.gradients()
        if self._scores_by_mean:
            for name, score in self.online.scores.items():
                score.copy_(scorers.gradient(self.gradient[name]))

    def _survivors(self, encoder: Encoder) -> dict[str, Tensor] | None:
        """Values whose size decides who survives in a pruned N:M group; None = the latents."""
        if not self.units.granularity.keeps or self.scorer is scorer_named("magnitude"):
            return None
        if self._scores_by_step and not self.gradient:
            return None
        scores = {n: self.scorer.finish(s) for n, s in self.scores(encoder).items()}
        return {name: score - score.min().clamp(max=0) for name, score in scores.items()}
