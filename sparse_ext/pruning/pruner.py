# SPDX-License-Identifier: MIT
"""The pruner: scorer x granularity x allocation x schedule. A method overrides what it changes.

A method decides which *units* are kept: single weights, N:M groups, blocks or filters, whatever the
run's granularity is (see `sparse_ext.pruning.units`). The pruner turns that into masks.

Everything is counted in optimizer steps. Masks are functions of synchronised state only (averaged
gradients, weights, step, seed), so every rank computes the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from torch import Tensor
from torch.optim import Optimizer

from solo.errors import ConfigError
from sparse_ext.compat import tree_map
from sparse_ext.config.scorer_names import scorer_named
from sparse_ext.masks.encoder import Encoder, InvariantError
from sparse_ext.pruning.log import log
from sparse_ext.pruning.ranking import Ranking
from sparse_ext.pruning.reaching import check_ramp
from sparse_ext.pruning.scores.random_draws import random_masks, random_members
from sparse_ext.pruning.units import Kept
from sparse_ext.schedules import Clock, Ramp, cubic, default_period


class Needs(NamedTuple):
    """What a method needs of its encoders; their buffers are made before a checkpoint is loaded.

    Attributes:
        latents: the last values of pruned weights are kept, in `shadow` buffers.
        mean_gradient: a running mean of |gradient| is kept, in the online encoder's `score`.
        stored_zeros: pruned weights are stored as zero; False for methods with one living weight
            under several masks (see `sparse_ext.masks.living_weights`).
    """

    latents: bool
    mean_gradient: bool = False
    stored_zeros: bool = True


class Slimmed(NamedTuple):
    """Of a run whose masks are final: it goes on with encoders that have become smaller.

    Attributes:
        before: prunable weights of each encoder when masks became final.
        at: optimizer step at which channels were last looked for.
    """

    before: int
    at: int


class Pruner(Ranking):
    """What all pruning methods share; by itself it leaves masks as they are.

    A method overrides, of what follows, only what it does differently:
    `needs` and `prepare` (before the optimizer is made), `set_up` (its state), `plan` (the ramp),
    `enter` (the start of training), `initial_masks`, `due`, `masks`, `adjust_gradients`,
    `begin_batch`, `after_step`, `end_epoch`.

    Args:
        config: the method's configuration.
        online: the encoder that is trained.
        momentum: its EMA teacher, or None.
        clock: length of the run.
        seed: of random masks; equal on all ranks.
        slimmed: the masks are final, and the encoders may be smaller than the run began with.

    Attributes (and those of `Ranking`):
        epoch: epochs done.
        ramp: when sparsity grows; None until that is known.
        begins: sparsity per encoder before the ramp; with N:M the share of groups that are N:M.
        finals: sparsity per encoder that the run is to end with.
        aims: sparsity per encoder that the present masks were made for.
        kept: weights kept now, online and momentum.
        flips: mask entries changed since they were last reported, both encoders.
        measured: whether what units cost is known, in images of the run.
        timed: whether a budget in seconds has become one in multiply-accumulates.
        update_figures: figures of the last mask update, to be logged with it.
    """

    #: names of attributes beside `t`, `epoch` and the ramp that a checkpoint keeps
    saved: ClassVar[tuple[str, ...]] = ()
    #: value of a regrown weight: `zero`, or `latent` = what it was when it was pruned
    regrow_init: str = "zero"
    #: layer budgets of random initial masks (`erk`, ...); None = initial masks by score
    random_start: str | None = None
    #: the survivors of an N:M group that is sparse before the ramp are drawn, too
    random_survivors: bool = False
    #: units that the online encoder kept for a moment of the update under way; others start anew
    between: Kept | None = None
    #: latest step at which the ramp starts, where only training decides when
    fires_at: int | None = None

    def __init__(
        self,
        config: Any,
        online: Encoder,
        momentum: Encoder | None,
        clock: Clock,
        seed: int = 0,
        slimmed: Slimmed | None = None,
    ) -> None:
        super().__init__(config, online, momentum, single=slimmed is not None)
        self.clock, self.seed, self.slimmed = clock, seed, slimmed
        self.epoch = self.flips = 0
        self.update_figures: dict[str, float] = {}
        self.period = config.update_period or default_period(clock.steps)
        # the update that reaches the final sparsity must be one that the run performs
        self.t_end = min(round(config.ramp_end * clock.steps), clock.steps - 1)
        count = len(self.encoders)
        self.begins = [config.initial, config.momentum[0]][:count]
        self.finals = [config.final, config.momentum[1]][:count]
        self.set_up()
        if self._scores_by_mean and self.history is None:
            self.history = self.score_history
        # what a unit costs depends on the size of the images
        self.measured = config.spending is None or slimmed is not None
        self.timed = False
        self.aims = list(self.begins)
        self.ramp = self.plan()
        if slimmed is None:
            for sparsity in self.finals:
                self.units.check(sparsity)  # named errors now, not at the last update
            check_ramp(self)

    # -- what a method overrides ------------------------------------------------------------

    @classmethod
    def needs(cls, config: Any, shared: bool) -> Needs:
        """What the method needs of its encoders.

        By default latents, for a momentum encoder that follows them, or where N:M groups come back
        and are ranked by what they were before.

        Args:
            config: the method's configuration.
            shared: there is one encoder, without a momentum encoder.
        """
        follows = not shared and config.ema_mode == "latent"
        latents = follows or (cls.growth is not None and config.some_survive)
        return Needs(latents, scorer_named(config.ranking).needs == "mean_gradient")

    @classmethod
    def prepare(cls, config: Any, module: Any, encoders: list[Encoder]) -> list[Encoder]:
        """Check or change a LightningModule before its optimizer is made and weights are loaded.

        Args:
            config: the method's configuration.
            module: what is trained, with all its heads.
            encoders: its masked encoders, online first.

        Returns:
            the encoders as this method sees them.
        """
        return encoders

    def set_up(self) -> None:
        """Make the method's own state; `clock`, `units`, `begins` and `finals` are there."""

    def plan(self) -> Ramp | None:
        """The ramp, if it is known before training; a pure function of what `set_up` has left."""
        return None

    def enter(self, module: Any, fresh: bool) -> None:
        """Called when training starts, before masks are made or restored.

        Args:
            module: what is trained, with all its heads, as the strategy set it up.
            fresh: this run is not resumed.
        """

    def initial_masks(self, encoder: Encoder, sparsity: float) -> Kept:
        """Units kept before the ramp: by score, or at random (the denser masks hold the others)."""
        if self.random_start is None:
            return self.best(encoder, sparsity)
        rule = self.random_start
        shapes = self.units.shapes_of_kept
        return self.units.within(
            lambda share: random_masks(shapes, self.units.allocate(rule, share), self.seed),
            sparsity,
        )

    def due(self) -> bool:
        """Whether masks change after the step under way."""
        return self.ramp is not None and self.ramp.due(self.t)

    def masks(self, encoder: Encoder, sparsity: float) -> Kept:
        """Units an encoder keeps from an update on.

        By default those of largest score; what the online encoder has lost does not come back.
        """
        online = encoder is self.online
        return self.best(encoder, sparsity, self.units.kept(encoder.masks) if online else None)

    def adjust_gradients(self, optimizer: Optimizer) -> None:
        """Turn the dense gradients into those that clipping and the optimizer see."""
        self.online.mask_gradients()

    def begin_batch(self, epoch: int, optimizer: Optimizer | None = None) -> bool:
        """Called before each batch of epoch `epoch` (0-based); returns whether masks changed."""
        return False

    def after_step(self, optimizer: Optimizer | None = None) -> bool:
        """Count one optimizer step and change masks if that is due; returns whether they did."""
        changed = self.due()
        if changed:
            self.aims = self.sparsities()
            pairs = zip(self.encoders, self.aims, strict=True)
            self.apply([self.masks(*pair) for pair in pairs], optimizer)
            self.gradient = {}
        self.t += 1
        return changed

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """Called after epoch `epoch` (1-based); returns figures to log."""
        return {}

    # -- what all methods use ---------------------------------------------------------------

    @property
    def kept(self) -> list[int]:
        """Number of kept weights per encoder, as measured."""
        return [encoder.masks.nnz for encoder in self.encoders]

    @property
    def latest_start(self) -> int | None:
        """Step at which the ramp starts at the latest; None = it may never."""
        return self.fires_at if self.ramp is None else self.ramp.t0

    def sparsity_of(self, encoder: Encoder) -> float:
        """Share of the units of an encoder that are pruned, as measured."""
        return 1 - self.units.count(encoder.masks) / self.units.total

    def weight_sparsities(self) -> list[float]:
        """Share of pruned weights per encoder, as measured; of those that the run began with."""
        if self.slimmed is None:
            return [encoder.masks.sparsity for encoder in self.encoders]
        return [1 - encoder.masks.nnz / self.slimmed.before for encoder in self.encoders]

    def sparsities(self) -> list[float]:
        """Scheduled sparsity per encoder at this step: the same index for both (Eq. 10-12)."""
        index, n = (0, 1) if self.ramp is None else (self.ramp.index(self.t), self.ramp.n)
        ends = zip(self.begins, self.finals, strict=True)
        return [cubic(first, last, index, n) for first, last in ends]

    @property
    def has_updates_left(self) -> bool:
        """Whether masks may still change, so that the running mean of gradients is needed."""
        return True

    @property
    def needs_batch(self) -> bool:
        """Whether initial masks need a batch; `measure` and `look` come before `start` then."""
        by_score = self.random_start is None and self.scorer.needs != "weight"
        return any(self.begins) and (by_score or not self.measured)

    def start(self) -> None:
        """Apply the initial masks; masks from before are never drawn again (section 0.9)."""
        if any(encoder.masks.nnz < encoder.masks.n for encoder in self.encoders):
            self._start_from_present_masks()
            return
        for encoder, sparsity in zip(self.encoders, self.begins, strict=True):
            if not sparsity:
                continue  # all is kept, and perhaps there are no scores yet
            members = self._survivors(encoder)
            if self.random_survivors and self.units.granularity.keeps:
                members = random_members(encoder.masks.shapes, self.seed)
            masks = self.units.expand(self.initial_masks(encoder, sparsity), encoder, members)
            encoder.change(masks, self.regrow_init)
        self.flips, self.gradient = 0, {}

    def apply(self, new: list[Kept], optimizer: Optimizer | None) -> None:
        """Put masks that keep these units in place, online encoder first."""
        for encoder, kept in zip(self.encoders, new, strict=True):
            members = self._survivors(encoder)
            masks, passing = self.units.expand(kept, encoder, members), None
            if encoder is self.online and self.between is not None:
                passing, self.between = self.units.expand(self.between, encoder, members), None
            self.flips += encoder.change(masks, self.regrow_init, optimizer, passing)

    def check(self, optimizer: Optimizer | None = None) -> None:
        """Raise InvariantError unless I1-I4 hold (section 0.3)."""
        for encoder, aim in zip(self.encoders, self.aims, strict=True):
            encoder.check(optimizer if encoder is self.online else None)
            if self.slimmed is not None:
                continue
            if self.units.compare(encoder.masks, aim) or not self.units.fit(encoder.masks):
                kept = self.units.count(encoder.masks)
                raise InvariantError(
                    f"{kept} units ({self.units.granularity}) are kept, which is not a sparsity of "
                    f"{aim}, or masks are not made of whole units."
                )

    def close_epoch(self, epoch: int) -> dict[str, float]:
        """Count epoch `epoch` (1-based) as done; returns figures to log."""
        self.epoch = epoch
        return self.end_epoch(epoch)

    def extra_state(self) -> dict[str, Any]:
        """What the attributes named in `saved` hold, as tensors and plain data."""
        if self.slimmed is not None:
            return {"before": self.slimmed.before, "slimmed_at": self.slimmed.at}
        values = {name: getattr(self, name) for name in self._saved}
        return {n: v.state_dict() if hasattr(v, "state_dict") else v for n, v in values.items()}

    @property
    def _saved(self) -> tuple[str, ...]:
        """What a budget in seconds has come to is measured once in a run."""
        return (*self.saved, *(("finals", "timed") if self.config.spending is not None else ()))

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take over the state that `extra_state` returned."""
        if self.slimmed is not None:
            return
        device = next(iter(self.online.weights.values())).device
        for name in self._saved:
            mine = getattr(self, name)
            if hasattr(mine, "load_state_dict"):
                mine.load_state_dict(state[name])
            else:
                move = tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, state[name])
                setattr(self, name, move)

    def _start_from_present_masks(self) -> None:
        """Trained before: the ramp begins at the sparsity that is there."""
        if not all(self.units.fit(encoder.masks) for encoder in self.encoders):
            raise ConfigError(
                f"The encoder has masks already, and they are not made of the units of "
                f"sparse.granularity={self.config.granularity}: choose the granularity that they "
                f"were made with, or start from a dense encoder."
            )
        self.begins = self.aims = [self.units.share_pruned(e.masks) for e in self.encoders]
        log.info("The encoders have masks already: sparsity starts from %s.", self.begins)
        for encoder, last in zip(self.encoders, self.finals, strict=True):
            if self.units.compare(encoder.masks, last) < 0:
                raise ConfigError(
                    f"The encoder has a sparsity of {self.sparsity_of(encoder):.4f} already, more "
                    f"than the final {last} asked for: raise sparse.final, or start from a denser "
                    f"encoder."
                )
