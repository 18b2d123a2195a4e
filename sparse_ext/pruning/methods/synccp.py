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

from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from sparse_ext.config.scorer_names import scorer_named
from sparse_ext.masks import files
from sparse_ext.masks.encoder import Encoder
from sparse_ext.pruning.log import log
from sparse_ext.pruning.methods.csi import CSI, compare
from sparse_ext.pruning.pruner import Needs, Pruner
from sparse_ext.pruning.units import Kept
from sparse_ext.schedules import Ramp, cosine_fraction

SHORT_RAMP = 5


class SyncCP(Pruner):
    """SyncS, CSI and prune-and-regrow by the averaged gradient."""

    saved = ("csi", "previous", "oscillation")
    growth = "mean"
    random_survivors = True

    @classmethod
    def needs(cls, config: Any, shared: bool) -> Needs:
        """Always latents: CSI ranks them, and regrown weights start from them."""
        return Needs(latents=True, mean_gradient=True)

    # -- Contrastive Sparsification Indicator -----------------------------------------------

    def set_up(self) -> None:
        """Prepare the trigger CSI, which waits for the moment to start the ramp."""
        config, final = self.config, self.units.sparsity(self.config.final)
        self.regrow_init = config.regrow_init
        self.random_start = config.initial_allocation
        self.allocation = "uniform" if config.scope == "layer" else config.scope
        averaged = config.growth == "ema"
        self.every = config.score_every
        self.history = config.score_momentum**self.every if averaged else None
        self.csi = CSI(config.csi, self.clock.epochs, final, shared=self.momentum is None)
        self.previous: dict[str, Tensor] = {}
        self.oscillation: dict[str, float] = {}
        self.fires_at = self._step_of(self.csi.last_epoch)

    def plan(self) -> Ramp | None:
        """The ramp, which is unknown until CSI fires."""
        return Ramp.plan(0, self.t_end, self.period) if self._ramps and self.fires_at == 0 else None

    @property
    def _ramps(self) -> bool:
        return self.config.final > self.config.initial

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
        if self.momentum is not None:
            other = self._pseudo_masks(self.momentum, self.config.momentum[1])
        else:
            other = {
                name: files.unpack(bits, tuple(mine[name].shape)).to(mine[name].device)
                for name, bits in self.previous.items()
            }
            self.previous = {name: files.pack(mask) for name, mask in mine.items()}
        seen = compare(mine, other).agreed() if other else None
        reason = self.csi.decide(epoch, seen)
        if reason:
            self._fire(reason)
        figures = self._figures()
        if seen is not None:
            figures |= {"inconsistency": seen.inconsistency, "excess": seen.excess}
            figures |= {f"layer_inconsistency/{name}": v for name, v in seen.layers.items()}
        return figures

    def _pseudo_masks(self, encoder: Encoder, sparsity: float) -> dict[str, Tensor]:
        """The masks an encoder would get; of weights, whatever the units (section 5.3)."""
        kept = self.best(encoder, sparsity, scorer=scorer_named("magnitude"))
        return self.units.expand(kept, encoder)

    def _fire(self, reason: str) -> None:
        self.previous = {}
        self.ramp = Ramp.plan(self.t, self.t_end, self.period)
        log.info(
            "CSI (%s) after %d steps: sparsity grows from step %d to %d in %d updates.",
            *(reason, self.t, self.ramp.t0, self.ramp.end, self.ramp.n),
        )
        if self.ramp.n < SHORT_RAMP:
            log.warning("Only %d updates: consider a longer run.", self.ramp.n)

    def begin_batch(self, epoch: int, optimizer: Optimizer | None = None) -> bool:
        """In a run of so few epochs that none ends in time, fire between two steps."""
        if self._ramps and self.ramp is None and self.t == self.fires_at:
            self._fire("deadline")
        return False

    # -- masks ------------------------------------------------------------------------------

    def due(self) -> bool:
        """From the start of the ramp on; after its end only with `regrow_after_ramp`."""
        return super().due() and self.ramp is not None and self.has_updates_left

    @property
    def has_updates_left(self) -> bool:
        """Until the end of the ramp, or always with `regrow_after_ramp`."""
        return self.config.regrow_after_ramp or self.ramp is None or self.t <= self.ramp.end

    def masks(self, encoder: Encoder, sparsity: float) -> Kept:
        """Magnitude prune to the budget, then swap the weakest for the most wanted (Eq. 3-4).

        In the momentum encoder every position is eligible, and nothing is swapped (section 5.5)
        without `offline_regrow`.
        """
        if encoder is not self.online:
            pruned = self.best(encoder, sparsity)
            regrows = self.config.offline_regrow
            return self.swap(encoder, pruned, self.drop_fraction) if regrows else pruned
        masked = self.config.mp_on == "masked"
        pruned = self.best(encoder, sparsity, self.units.kept(encoder.masks) if masked else None)
        new = self.swap(encoder, pruned, self.drop_fraction)
        self.oscillation = self.units.layer_changes(pruned, new, encoder)  # Eq. 7
        sizes = encoder.sizes
        changed = sum(share * sizes[name] for name, share in self.oscillation.items())
        figures = {f"layer_oscillation/{name}": v for name, v in self.oscillation.items()}
        self.update_figures = {"oscillation": changed / sum(sizes.values())} | figures
        return new

    @property
    def drop_fraction(self) -> float:
        """Share of a layer's kept weights that is swapped at this step (section 1.6)."""
        ends = self.config.drop_start, self.config.drop_end
        return cosine_fraction(self.t, self.clock.steps, *ends)

    def _figures(self) -> dict[str, float]:
        return {"triggered": float(self.ramp is not None), "drop_fraction": self.drop_fraction}
