# SPDX-License-Identifier: MIT
"""Synchronized contrastive pruning (SyncCP, "Synchronized Pruning for Efficient Contrastive
Self-Supervised Learning").

Both encoders become sparse along one cubic ramp with a constant gap (SyncS, Eq. 10-12). The ramp
starts when the pseudo-masks of both differ by little more than that gap (CSI, Eq. 13-16). Each
update prunes by magnitude, prunes some more, and regrows that many weights by the running mean of
the gradient's magnitude (Eq. 3, 4, 17). With one shared encoder there is one mask, and CSI compares
it with that of the epoch before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from sparse_ext.masks import files
from sparse_ext.masks.encoder import Encoder
from sparse_ext.masks.mask_set import MaskSet
from sparse_ext.pruning.log import log
from sparse_ext.pruning.methods.csi import CSI, compare
from sparse_ext.pruning.pruner import Pruner
from sparse_ext.pruning.regrow import drop_and_regrow
from sparse_ext.pruning.scores.random_draws import random_masks, random_members
from sparse_ext.pruning.scores.scorers import ema_gradient_
from sparse_ext.pruning.units import Kept
from sparse_ext.schedules import Ramp, cosine_fraction

SHORT_RAMP = 5


class SyncCP(Pruner):
    """SyncS, CSI and prune-and-regrow by the averaged gradient."""

    scores_gradients = True

    @classmethod
    def keeps_latents(cls, config: Any, shared: bool) -> bool:
        """Always: CSI ranks latents, and regrown weights start from them."""
        return True

    @property
    def regrow_init(self) -> str:  # type: ignore[override]
        """Value of a regrown weight."""
        return self.config.regrow_init

    # -- Contrastive Sparsification Indicator -----------------------------------------------

    def plan(self) -> Ramp | None:
        """Unknown until CSI fires."""
        final, shared = self.units.sparsity(self.config.final), self.momentum is None
        self.csi = CSI(self.config.csi, self.clock.epochs, final, shared)
        self.previous: MaskSet | None = None
        self.oscillation: dict[str, float] = {}
        self.fires_at = self._step_of(self.csi.last_epoch)
        return Ramp.plan(0, self.t_end, self.period) if self._ramps and self.fires_at == 0 else None

    @property
    def _ramps(self) -> bool:
        return self.config.final > self.config.initial

    def latest_start(self) -> int | None:
        """The deadline, in steps."""
        return self.fires_at

    def start_is_given(self) -> bool:
        """By `csi: epoch:<k>`."""
        return self.csi.config.fixed_epoch is not None

    def _step_of(self, epoch: int | None) -> int | None:
        """The deadline: the end of `epoch`; in a run of few epochs the same share of its steps."""
        if epoch is None:
            return None
        step = epoch * self.clock.steps_per_epoch
        if epoch == 0 or step + self.period <= self.t_end:
            return step
        fixed = self.csi.config.fixed_epoch
        if fixed is None or fixed < 1:
            return round((self.csi.config.deadline if fixed is None else fixed) * self.clock.steps)
        return step

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """Compare pseudo-masks at the final sparsities (Eq. 13-16); start the ramp if it is time.

        The pseudo-masks rank latents and are never applied.
        """
        if not self._ramps or self.ramp is not None:
            return self._figures()
        mine = self._pseudo_masks(self.online, self.config.final)
        other = self.previous
        if self.momentum is not None:
            other = self._pseudo_masks(self.momentum, self.config.momentum[1])
        else:
            self.previous = mine
        seen = None if other is None else compare(mine, other).agreed()
        reason = self.csi.decide(epoch, seen)
        if reason:
            self._fire(reason)
        figures = self._figures()
        if seen is not None:
            figures |= {"inconsistency": seen.inconsistency, "excess": seen.excess}
            figures |= {f"layer_inconsistency/{name}": v for name, v in seen.layers.items()}
        return figures

    def _pseudo_masks(self, encoder: Encoder, sparsity: float) -> MaskSet:
        """The masks an encoder would get; of weights, whatever the units (section 5.3)."""
        return MaskSet(self.units.expand(self.smallest_out(encoder, sparsity), encoder))

    def _fire(self, reason: str) -> None:
        self.previous = None
        self.ramp = Ramp.plan(self.t, self.t_end, self.period)
        log.info(
            "CSI (%s) after %d steps: sparsity grows from step %d to %d in %d updates.",
            *(reason, self.t, self.ramp.t0, self.ramp.end, self.ramp.n),
        )
        if self.ramp.n < SHORT_RAMP:
            log.warning("Only %d updates: consider a longer run.", self.ramp.n)

    def after_step(self, optimizer: Optimizer | None = None) -> bool:
        """As the base class; in a run of so few epochs that none ends in time, fire in between."""
        if self._ramps and self.ramp is None and self.t == self.fires_at:
            self._fire("deadline")
        return super().after_step(optimizer)

    # -- masks ------------------------------------------------------------------------------

    def due(self) -> bool:
        """From the start of the ramp on; after its end only with `regrow_after_ramp`."""
        if not super().due() or self.ramp is None:
            return False
        return self.config.regrow_after_ramp or self.t <= self.ramp.end

    def initial_masks(self, encoder: Encoder, sparsity: float) -> Kept:
        """Random; the denser encoder's masks contain the sparser one's."""
        counts = self.units.allocate(self.config.initial_allocation, sparsity)
        return random_masks(self.units.shapes_of_kept, counts, self.seed)

    def initial_members(self, encoder: Encoder) -> Mapping[str, Tensor] | None:
        """Random as well, the same for both encoders."""
        if not self.units.granularity.keeps:
            return None
        return random_members(encoder.masks.shapes, self.seed)

    def online_masks(self, sparsity: float) -> Kept:
        """Magnitude prune to the budget, then swap the weakest for the most wanted (Eq. 3-4)."""
        masked = self.config.mp_on == "masked"
        eligible = self.units.kept(self.online.masks) if masked else None
        pruned = self.smallest_out(self.online, sparsity, eligible)
        new = self.regrow(self.online, pruned)
        self.oscillation = self._oscillation(pruned, new)
        return new

    def momentum_masks(self, encoder: Encoder, sparsity: float) -> Kept:
        """Magnitude only, every position eligible (section 5.5)."""
        pruned = self.smallest_out(encoder, sparsity)
        return self.regrow(encoder, pruned) if self.config.offline_regrow else pruned

    def smallest_out(self, encoder: Encoder, sparsity: float, eligible: Kept | None = None) -> Kept:
        """As the base class, or every layer to that sparsity with `scope: layer`."""
        if self.config.scope == "global":
            return super().smallest_out(encoder, sparsity, eligible)
        values = self.magnitudes(encoder)
        return self.units.largest_per_layer(values, sparsity, "uniform", eligible)

    def wants_gradients(self) -> bool:
        """Every step's, or those of updates only."""
        fires = self.ramp is None and self.t == self.fires_at
        return self.config.score == "ema" or fires or self.due()

    def observe(self, finite: Tensor) -> None:
        """score <- gamma * score + (1 - gamma) * |gradient| (Eq. 17)."""
        gamma = self.config.score_momentum if self.config.score == "ema" else 0.0
        graded = [m for m in self.online.layers.values() if m.weight.grad is not None]
        scores, grads = [m.score for m in graded], [m.weight.grad for m in graded]
        ema_gradient_(scores, grads, gamma, finite)

    def regrow(self, encoder: Encoder, pruned: Kept) -> Kept:
        """Drop and regrow by the online encoder's averaged gradient; budgets stay as they are."""
        scores = self.units.pool(self.online.scores)
        return drop_and_regrow(pruned, self.magnitudes(encoder), scores, self.drop_fraction)

    def _oscillation(self, pruned: Kept, regrown: Kept) -> dict[str, float]:
        """Share of a layer's mask that regrowth changed (Eq. 7)."""
        return self.units.layer_changes(pruned, regrown, self.online)

    @property
    def drop_fraction(self) -> float:
        """Share of a layer's kept weights that is swapped at this step (section 1.6)."""
        ends = self.config.drop_start, self.config.drop_end
        return cosine_fraction(self.t, self.clock.steps, *ends)

    # -- figures and state ------------------------------------------------------------------

    def _figures(self) -> dict[str, float]:
        return {"triggered": float(self.ramp is not None), "drop_fraction": self.drop_fraction}

    def update_figures(self) -> dict[str, float]:
        """What regrowth changed, per layer and over all of them (Eq. 7)."""
        sizes = self.online.sizes
        changed = sum(share * sizes[name] for name, share in self.oscillation.items())
        figures = {f"layer_oscillation/{name}": v for name, v in self.oscillation.items()}
        return {"oscillation": changed / sum(sizes.values())} | figures

    def extra_state(self) -> dict[str, Any]:
        """What CSI has seen; the last pseudo-masks, eight to a byte, with one encoder."""
        packed = {name: files.pack(mask) for name, mask in (self.previous or {}).items()}
        return {"csi": self.csi.state_dict(), "previous": packed, "oscillation": self.oscillation}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take over `extra_state`."""
        self.csi.load_state_dict(state["csi"])
        self.oscillation = dict(state["oscillation"])
        masks = self.online.masks
        unpacked = {
            name: files.unpack(bits, masks[name].shape).to(masks[name].device)
            for name, bits in state["previous"].items()
        }
        self.previous = MaskSet(unpacked) if unpacked else None


PRUNER = SyncCP
