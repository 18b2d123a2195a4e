# SPDX-License-Identifier: MIT
"""The pruner: scorer x units x allocation x schedule. A method is a subclass that overrides little.

A method decides which *units* are kept: single weights, N:M groups, blocks or filters, whatever the
run's granularity is (see `sparse_ext.pruning.units`). The pruner turns that into masks.

Everything is counted in optimizer steps. Masks are functions of synchronised state only (averaged
gradients, weights, step, seed), so every rank computes the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from solo.errors import ConfigError
from sparse_ext.config.sections import SparseConfig
from sparse_ext.masks.encoder import Encoder, InvariantError
from sparse_ext.pruning import coupled_units
from sparse_ext.pruning.hooks import Hooks
from sparse_ext.pruning.log import log
from sparse_ext.pruning.units import Kept, Units
from sparse_ext.schedules import Clock, Ramp, cubic, default_period


class Pruner(Hooks):
    """What all pruning methods share; on its own it keeps the encoders dense.

    Override `plan`, `initial_masks`, `online_masks`, `momentum_masks`, `end_epoch`. The masks are
    one bool per unit, 1 = kept, as `units` makes and takes them.

    Args:
        config: the method's configuration.
        online: the encoder that is trained.
        momentum: its EMA teacher, or None.
        clock: length of the run.
        seed: of random masks; equal on all ranks.

    Attributes:
        t: optimizer steps done.
        epoch: epochs done.
        ramp: when sparsity grows; None until that is known.
        units: what is ranked, kept and dropped.
        begins: sparsity per encoder before the ramp; with N:M the share of groups that are N:M.
        aims: sparsity per encoder that the present masks were made for.
        kept: weights kept now, online and momentum.
        flips: mask entries changed since they were last reported, both encoders.
    """

    def __init__(
        self,
        config: Any,
        online: Encoder,
        momentum: Encoder | None,
        clock: Clock,
        seed: int = 0,
    ) -> None:
        self.config: Any = config
        self.online = online
        self.momentum = momentum
        self.clock = clock
        self.seed = seed
        self.t = 0
        self.epoch = 0
        self.flips = 0
        self.units = self.make_units()
        self.period = config.update_period or default_period(clock.steps)
        # the update that reaches the final sparsity must be one that the run performs
        self.t_end = min(round(config.ramp_end * clock.steps), clock.steps - 1)
        self.begins = [config.initial, config.momentum[0]][: len(self.encoders)]
        self.aims = list(self.begins)
        self.ramp = self.plan()
        for sparsity in self.finals:
            self.budget(sparsity)  # named errors now, not at the last update
        start, given = self.latest_start(), self.start_is_given()
        check_ramp(config, start, given, self.t_end, self.period, clock.steps)

    def make_units(self) -> Units:
        """What is ranked, kept and dropped."""
        return coupled_units.make_units(self.config, self.online)

    @property
    def encoders(self) -> list[Encoder]:
        """The masked encoders, online first."""
        return [self.online] if self.momentum is None else [self.online, self.momentum]

    @property
    def kept(self) -> list[int]:
        """Kept weights per encoder, as measured."""
        return [encoder.masks.nnz for encoder in self.encoders]

    # -- what a method overrides ------------------------------------------------------------

    @property
    def finals(self) -> list[float]:
        """Sparsity per encoder that the run is to end with."""
        return [self.config.final, self.config.momentum[1]][: len(self.encoders)]

    def budget(self, sparsity: float) -> int:
        """Units that are kept at `sparsity`."""
        return self.units.budget(sparsity)

    def plan(self) -> Ramp | None:
        """The ramp, if it is known before training."""
        return None

    def latest_start(self) -> int | None:
        """Step at which the ramp starts at the latest; None = it may never."""
        return None if self.ramp is None else self.ramp.t0

    def initial_masks(self, encoder: Encoder, sparsity: float) -> Kept:
        """Units kept before the ramp."""
        return self.smallest_out(encoder, sparsity)

    def initial_members(self, encoder: Encoder) -> Mapping[str, Tensor] | None:
        """Who survives in an N:M group that is sparse before the ramp: None = by magnitude."""
        return None

    def online_masks(self, sparsity: float) -> Kept:
        """Units the online encoder keeps; by default by magnitude, and nothing comes back."""
        return self.smallest_out(self.online, sparsity, self.units.kept(self.online.masks))

    def momentum_masks(self, encoder: Encoder, sparsity: float) -> Kept:
        """Units the momentum encoder keeps; by default by the magnitude of its latents."""
        return self.smallest_out(encoder, sparsity)

    def due(self) -> bool:
        """Whether masks change after the step under way."""
        return self.ramp is not None and self.ramp.due(self.t)

    def adjust_gradients(self, optimizer: Optimizer) -> None:
        """Turn the dense gradients into those that clipping and the optimizer see."""
        self.online.mask_gradients()

    # -- what all methods use ---------------------------------------------------------------

    def sparsity_of(self, encoder: Encoder) -> float:
        """Share of pruned units, as measured."""
        return 1 - self.units.count(encoder.masks) / self.units.total

    def weight_sparsities(self) -> list[float]:
        """Share of pruned weights per encoder, as measured."""
        return [encoder.masks.sparsity for encoder in self.encoders]

    def sparsities(self) -> list[float]:
        """Scheduled sparsity per encoder at this step: the same index for both (Eq. 10-12)."""
        index, n = (0, 1) if self.ramp is None else (self.ramp.index(self.t), self.ramp.n)
        ends = zip(self.begins, self.finals, strict=True)
        return [cubic(first, last, index, n) for first, last in ends]

    def magnitudes(self, encoder: Encoder) -> dict[str, Tensor]:
        """Sum of |latent| per unit."""
        return self.units.pool({name: value.abs() for name, value in encoder.latents.items()})

    def smallest_out(self, encoder: Encoder, sparsity: float, eligible: Kept | None = None) -> Kept:
        """Keep the units of largest magnitude over all layers together, exactly the budget.

        Args:
            eligible: which units may be kept; by default any.
        """
        return self.units.largest(self.magnitudes(encoder), sparsity, eligible)

    def start(self) -> None:
        """Apply the initial masks; masks from before are never drawn again (section 0.9)."""
        if any(encoder.masks.nnz < encoder.masks.n for encoder in self.encoders):
            self._start_from_present_masks()
            return
        for encoder, sparsity in zip(self.encoders, self.begins, strict=True):
            members = self.initial_members(encoder)
            masks = self.units.expand(self.initial_masks(encoder, sparsity), encoder, members)
            encoder.change(masks, self.regrow_init)
        self.flips = 0

    def after_step(self, optimizer: Optimizer | None = None) -> bool:
        """Count one optimizer step and change masks if that is due; returns whether they did."""
        changed = self.due()
        if changed:
            self.aims = self.sparsities()
            new = [self.online_masks(self.aims[0])]
            if self.momentum is not None:
                new.append(self.momentum_masks(self.momentum, self.aims[1]))
            self._apply(new, optimizer)
        self.t += 1
        return changed

    def check(self, optimizer: Optimizer | None = None) -> None:
        """Raise InvariantError unless I1-I4 hold (section 0.3)."""
        for encoder, aim in zip(self.encoders, self.aims, strict=True):
            encoder.check(optimizer if encoder is self.online else None)
            kept, budget = self.units.count(encoder.masks), self.budget(aim)
            if kept != budget or not self.units.fit(encoder.masks):
                raise InvariantError(
                    f"{kept} units ({self.units.granularity}) are kept instead of {budget}, or "
                    f"masks are not made of whole units."
                )

    def close_epoch(self, epoch: int) -> dict[str, float]:
        """Count epoch `epoch` (1-based) as done; returns figures to log."""
        self.epoch = epoch
        return self.end_epoch(epoch)

    def report_end(self) -> None:
        """Warn if the run ends with another sparsity than it was asked for."""
        for encoder, final in zip(self.encoders, self.finals, strict=True):
            if self.units.count(encoder.masks) != self.budget(final):
                log.warning(
                    "The run ended at sparsity %.4f, not at the final %s: %s.",
                    *(self.sparsity_of(encoder), final, self._why_not()),
                )

    def _why_not(self) -> str:
        if self.ramp is None:
            return "the ramp never started"
        return f"it stopped after {self.t} steps, the ramp ends at step {self.ramp.end}"

    def _start_from_present_masks(self) -> None:
        """Trained before: the ramp begins at the sparsity that is there."""
        if not all(self.units.fit(encoder.masks) for encoder in self.encoders):
            raise ConfigError(
                f"The encoder has masks already, and they are not made of the units of "
                f"sparse.granularity={self.config.granularity}: choose the granularity that they "
                f"were made with, or start from a dense encoder."
            )
        self.begins = self.aims = [self.sparsity_of(encoder) for encoder in self.encoders]
        log.info("The encoders have masks already: sparsity starts from %s.", self.begins)
        for encoder, last in zip(self.encoders, self.finals, strict=True):
            if self.units.count(encoder.masks) < self.budget(last):
                raise ConfigError(
                    f"The encoder has a sparsity of {self.sparsity_of(encoder):.4f} already, more "
                    f"than the final {last} asked for: raise sparse.final, or start from a denser "
                    f"encoder."
                )

    def _apply(self, new: list[Kept], optimizer: Optimizer | None) -> None:
        for encoder, kept in zip(self.encoders, new, strict=True):
            masks = self.units.expand(kept, encoder)
            self.flips += encoder.change(masks, self.regrow_init, optimizer)


def check_ramp(
    config: SparseConfig, start: int | None, given: bool, end: int, period: int, steps: int
) -> None:
    """A ramp must fit between its latest start and its end, or `final` is never reached.

    Args:
        config: of the method.
        start: step at which the ramp starts at the latest; None = it may never.
        given: whether the user named that step.
        end: step by which the ramp is over.
        period: optimizer steps between two updates.
        steps: of the run.

    Raises:
        ConfigError: if it does not fit and settings of the user's are the reason. A warning says
            so where the run is merely short.
    """
    if start is None or config.final <= config.initial:
        return
    if end - Ramp.plan(start, end, period).t0 >= period:
        return
    message = (
        f"The ramp may start as late as step {start} and must end by step {end} "
        f"(sparse.ramp_end={config.ramp_end} of {steps} steps), which leaves no room for one "
        f"update period of {period} steps"
    )
    if given:
        raise ConfigError(f"{message}: start the ramp earlier, or train longer.")
    if config.update_period is not None:
        raise ConfigError(f"{message}: lower sparse.update_period, or train longer.")
    log.warning("%s: sparsity %s will not be reached.", message, config.final)
