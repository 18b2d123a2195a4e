# SPDX-License-Identifier: MIT
"""The settings of SyncCP."""

from __future__ import annotations

import math
import typing
from dataclasses import dataclass, field

from solo.errors import ConfigError
from sparse_ext.config.base import (
    ALLOCATIONS,
    COMPARED,
    SparseConfig,
    clean,
    derive,
    require_choice,
)
from sparse_ext.config.scorer_names import SCORERS

TOLERANCE = 1e-9  # of a difference of two sparsities that must equal `gap`


@dataclass(frozen=True)
class CSIConfig:
    """Contrastive Sparsification Indicator: when the ramp starts (SyncCP, section 4.2).

    Attributes:
        mode: `normalized` (excess inconsistency as a fraction of chance level), `absolute`
            (excess <= eps), `literal` (the paper: no excess at all; no warm-up, no deadline),
            `epoch:<k>` (after epoch k, or after that fraction of the run if k < 1), `off` (at
            once).
        kappa: threshold of `normalized`.
        eps: threshold of `absolute`.
        patience: consecutive epochs below the threshold that it takes.
        warmup_epochs: epochs that are only recorded; None = 10, or 5% of a run shorter than that.
        deadline: fraction of the run after which the ramp starts in any case.
        tau: threshold of a method with one encoder: change of its pseudo-mask over one epoch.
        tau_relative: scale tau by chance level, 2 s (1 - s) / 0.32.
    """

    mode: str = "normalized"
    kappa: float = 0.02
    eps: float = 0.01
    patience: int = 2
    warmup_epochs: int | None = None
    deadline: float = 0.30
    tau: float = 0.1
    tau_relative: bool = False

    MODES: typing.ClassVar[tuple[str, ...]] = ("normalized", "absolute", "literal", "off")

    def __post_init__(self):
        if not self.mode.startswith("epoch:"):
            require_choice("csi.mode", self.mode, self.MODES, extra=("epoch:<k>",))
        elif self.fixed_epoch is None:
            raise ConfigError(
                f"sparse.csi.mode={self.mode!r}: after 'epoch:' comes a number of epochs "
                f"(epoch:60) or a fraction of the run (epoch:0.3)."
            )
        for key in ("kappa", "eps", "tau"):
            if getattr(self, key) < 0:
                raise ConfigError(f"sparse.csi.{key}={getattr(self, key)} must not be negative.")
        if self.patience < 1 or (self.warmup_epochs or 0) < 0:
            raise ConfigError("sparse.csi: patience is at least 1, warmup_epochs at least 0.")
        if not 0 <= self.deadline <= 1:
            raise ConfigError(f"sparse.csi.deadline={self.deadline} is not a fraction of the run.")

    @property
    def fixed_epoch(self) -> float | None:
        """The number behind `epoch:`, None in the other modes or when it is not a number."""
        try:
            value = float(self.mode.removeprefix("epoch:"))
        except ValueError:
            return None
        return value if math.isfinite(value) and value >= 0 else None


@dataclass(frozen=True)
class SyncCPConfig(SparseConfig):
    """Synchronized contrastive pruning (SyncCP): both encoders, constant gap, start by CSI.

    `momentum_initial` and `momentum_final` left out follow from `gap`. With N:M all sparsities are
    shares of groups (section 5.6).

    Attributes:
        initial: sparsity of the online encoder before the ramp; left out: 0.3, or 0 without `sync`.
        sync: SyncS, the same gap from start to end. Without it both encoders start alike and the
            gap grows to its full size, as in GraNet-SSL.
        gap: Delta_s, sparsity of the sparser encoder minus that of the other one.
        sparser: `online` (the paper) or `offline` (its Table 12).
        initial_allocation: layer densities of the initial random masks: `erk`, `er`, `uniform`.
        scope: magnitudes are compared over all layers (`global`), over those of one kind
            (`isomorphic`) or within each (`layer`, which then all get the same sparsity).
        csi: when the ramp starts.
        score: what brings weights back: the running mean of |gradient| (`ema`) or that of the
            update's own step (`instant`); both keep the weights of largest magnitude. Any other
            name is that of the score by which weights are kept, and `ema` brings them back.
        score_momentum: weight of the history in the gradient score (0.9; the paper's Eq. 17 read
            literally is 0.1, the authors' scripts have 0.99).
        score_every: with `ema`, the gradient of pruned weights is looked at in every k-th step
            only, with history `score_momentum` ** k; 1 is the paper. That gradient is dense work,
            which a sparse kernel would else do in every step; three seeds on the digits do not tell
            k = 5 or 20 from 1 (see docs/kernels.md).
        drop_start: fraction of a layer's weights that is dropped and regrown, at the first step.
        drop_end: the same at the last step (cosine in between).
        regrow_init: value of a regrown weight: `latent` = what it was when it was pruned, `zero`.
        regrow_after_ramp: keep dropping and regrowing once the final sparsity is reached.
        offline_regrow: the momentum encoder drops and regrows too, by the online score.
        mp_on: rank by magnitude the `masked` weights (a pruned one returns only by regrowth) or
            the `latent` ones; left out: `masked`, or `latent` with N:M, where every group is
            ranked anew (section 5.6).
    """

    PAIR_ONLY: typing.ClassVar[tuple[str, ...]] = (
        *SparseConfig.PAIR_ONLY,
        "gap",
        "sparser",
        "offline_regrow",
        "sync",
    )

    name: str = "synccp"
    initial: float = None  # type: ignore[assignment]
    sync: bool = True
    gap: float = 0.3
    sparser: str = "online"
    initial_allocation: str = "erk"
    scope: str = "global"
    csi: CSIConfig = field(default_factory=CSIConfig)
    score: str = "ema"
    score_momentum: float = 0.9
    score_every: int = 1
    drop_start: float = 0.5
    drop_end: float = 0.005
    regrow_init: str = "latent"
    regrow_after_ramp: bool = True
    offline_regrow: bool = False
    mp_on: str = None  # type: ignore[assignment]

    def __post_init__(self):
        require_choice("sparser", self.sparser, ("online", "offline"))
        require_choice("score", self.score, ("ema", "instant", *SCORERS))
        self.fill_in()
        self._check_gaps()
        super().__post_init__()
        require_choice("initial_allocation", self.initial_allocation, ALLOCATIONS)
        require_choice("scope", self.scope, (*COMPARED, "layer"))
        require_choice("regrow_init", self.regrow_init, ("latent", "zero"))
        require_choice("mp_on", self.mp_on, ("masked", "latent"))
        if self.score_every < 1:
            raise ConfigError(f"sparse.score_every={self.score_every} must be at least 1 step.")
        if self.score_every > 1 and self.growth != "ema":
            raise ConfigError(
                f"sparse.score_every={self.score_every} has no effect on "
                f"sparse.score={self.score}, which looks at update steps only. Leave it out."
            )
        for key in ("score_momentum", "drop_start", "drop_end"):
            if not 0 <= getattr(self, key) < 1:
                raise ConfigError(f"sparse.{key}={getattr(self, key)} must be in [0, 1).")
        if (self.csi.fixed_epoch or 0) < 1 and (self.csi.fixed_epoch or 0) >= self.ramp_end:
            raise ConfigError(
                f"sparse.csi.mode={self.csi.mode} starts the ramp after its end "
                f"(sparse.ramp_end={self.ramp_end}, both fractions of the run): start earlier."
            )
        if self.csi.deadline >= self.ramp_end and self.csi.mode in ("normalized", "absolute"):
            raise ConfigError(
                f"sparse.csi.deadline={self.csi.deadline} must be before "
                f"sparse.ramp_end={self.ramp_end}: a ramp that starts last would have no room."
            )

    def fill_in(self) -> None:
        """The start depends on `sync`, the ranking on the granularity."""
        super().fill_in()
        if self.initial is None:
            derive(self, "initial", 0.3 if self.sync else 0.0)
        if self.mp_on is None:
            derive(self, "mp_on", "latent" if self.some_survive else "masked")

    @property
    def ranking(self) -> str:
        """The scorer that decides which weights are kept."""
        return "magnitude" if self.score in ("ema", "instant") else self.score

    @property
    def growth(self) -> str:
        """Which |gradient| brings weights back, `ema` or `instant`."""
        return "instant" if self.score == "instant" else "ema"

    @property
    def start_is_given(self) -> bool:
        """Whether the user named the step at which the ramp starts: by `csi: epoch:<k>`."""
        return self.csi.fixed_epoch is not None

    @property
    def momentum(self) -> tuple[float, float]:
        """Initial and final sparsity of the momentum encoder (Eq. 12)."""
        signed = self.gap if self.sparser == "online" else -self.gap
        first, last = self.momentum_initial, self.momentum_final
        if first is None:
            first = clean(self.initial - signed) if self.sync else self.initial
        return first, clean(self.final - signed) if last is None else last

    def _check_gaps(self) -> None:
        if not 0 <= self.gap < 1:
            raise ConfigError(f"sparse.gap={self.gap} must be at least 0 and below 1.")
        sign = 1 if self.sparser == "online" else -1
        for when, online, own in zip(
            ("initial", "final"), (self.initial, self.final), self.momentum, strict=True
        ):
            if self.sync and abs(sign * (online - own) - self.gap) >= TOLERANCE:
                raise ConfigError(
                    f"sparse.{when}={online} and sparse.momentum_{when}={own} differ by "
                    f"{clean(sign * (online - own))}, but sparse.gap={self.gap} (sparser: "
                    f"{self.sparser}). The gap is constant during training: give "
                    f"momentum_{when}={clean(online - sign * self.gap)}, or leave "
                    f"momentum_{when} out, or set sparse.gap, or sparse.sync=false."
                )
            most = 1 if self.some_survive else 1 - TOLERANCE
            if getattr(self, f"momentum_{when}") is None and not 0 <= own <= most:
                raise ConfigError(
                    f"sparse.{when}={online} with sparse.gap={self.gap} (sparser: {self.sparser}) "
                    f"leaves the momentum encoder a sparsity of {own}. Choose a smaller sparse.gap "
                    f"(0 for a method without momentum encoder)."
                )
