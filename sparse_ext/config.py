# SPDX-License-Identifier: MIT
"""The schema of the `sparse:` section: frozen dataclasses, the only place with its defaults.

`build` turns what a user wrote (a name, a mapping) into one of them and names every mistake.
`store` registers each as a Hydra config group entry, so that `+sparse=synccp sparse.final=0.9`
works behind any YAML. Importing this module does not import torch.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from solo.errors import ConfigError, did_you_mean
from sparse_ext.typed import fill

TOLERANCE = 1e-9  # of a difference of two sparsities that must equal `gap`


@dataclass(frozen=True)
class SparseConfig:
    """What every weight-sparsity method is asked.

    Attributes:
        name: the method.
        initial: sparsity of the online encoder before the ramp, in [0, 1).
        final: its sparsity after the ramp, in [0, 1).
        momentum_initial: the same for the momentum encoder; None = derived by the method.
        momentum_final: the same for the momentum encoder; None = derived by the method.
        update_period: optimizer steps between two mask updates; None = min(1000, T // 195) for a
            run of T optimizer steps (1000 in the CIFAR runs of the paper).
        ramp_end: fraction of the run at which the final sparsity is reached.
        ema_mode: how the momentum encoder follows: `latent` averages the dense views of both
            encoders, `leaky` the stored weights, zeros included, `hold` only where both are kept.
        stem_dense: leave the first convolution out of the prunable set.
        exclude: glob patterns of module names that stay dense.
        seed: of random masks; None = the run's seed.
        debug: check the storage invariants after every step (slow).
    """

    name: str = ""
    initial: float = 0.0
    final: float = 0.8
    momentum_initial: float | None = None
    momentum_final: float | None = None
    update_period: int | None = None
    ramp_end: float = 0.69
    ema_mode: str = "latent"
    stem_dense: bool = True
    exclude: tuple[str, ...] = ()
    seed: int | None = None
    debug: bool = False

    def __post_init__(self):
        for key in ("initial", "final", "momentum_initial", "momentum_final"):
            value = getattr(self, key)
            if value is not None and not 0 <= value < 1:
                raise ConfigError(
                    f"sparse.{key}={value} is not a sparsity: it must be at least 0 and below 1 "
                    f"(0.9 means that 90% of the weights are zero)."
                )
        _require_rising("initial", self.initial, "final", self.final)
        _require_rising("momentum_initial", self.momentum[0], "momentum_final", self.momentum[1])
        _require_choice("ema_mode", self.ema_mode, ("latent", "leaky", "hold"))
        if self.update_period is not None and self.update_period < 1:
            raise ConfigError(f"sparse.update_period={self.update_period} must be at least 1 step.")
        if not 0 < self.ramp_end <= 1:
            raise ConfigError(f"sparse.ramp_end={self.ramp_end} is not a fraction in (0, 1].")

    @property
    def momentum(self) -> tuple[float, float]:
        """Initial and final sparsity of the momentum encoder: the online ones where not given."""
        first, last = self.momentum_initial, self.momentum_final
        return (self.initial if first is None else first, self.final if last is None else last)


@dataclass(frozen=True)
class GMPConfig(SparseConfig):
    """Gradual magnitude pruning: cubic ramp, smallest weights first, nothing comes back.

    Attributes:
        ramp_start: fraction of the run at which the ramp starts.
        allocation: `global` compares weights of all layers; `erk`, `er` and `uniform` give every
            layer its budget and compare within it.
    """

    name: str = "gmp"
    ramp_start: float = 0.0
    allocation: str = "global"

    def __post_init__(self):
        super().__post_init__()
        _require_choice("allocation", self.allocation, ("global", "erk", "er", "uniform"))
        if not 0 <= self.ramp_start < self.ramp_end:
            raise ConfigError(
                f"sparse.ramp_start={self.ramp_start} must be at least 0 and before "
                f"sparse.ramp_end={self.ramp_end} (fractions of the run)."
            )


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

    MODES: typing.ClassVar = ("normalized", "absolute", "literal", "off")

    def __post_init__(self):
        if not self.mode.startswith("epoch:"):
            _require_choice("csi.mode", self.mode, self.MODES, extra=("epoch:<k>",))
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

    `momentum_initial` and `momentum_final` left at None follow from `gap`.

    Attributes:
        gap: Delta_s, sparsity of the sparser encoder minus that of the other one.
        sparser: `online` (the paper) or `offline` (its Table 12).
        initial_allocation: layer densities of the initial random masks: `erk`, `er`, `uniform`.
        csi: when the ramp starts.
        score_momentum: weight of the history in the gradient score (0.9; the paper's Eq. 17 read
            literally is 0.1, the authors' scripts have 0.99).
        drop_start: fraction of a layer's weights that is dropped and regrown, at the first step.
        drop_end: the same at the last step (cosine in between).
        regrow_init: value of a regrown weight: `latent` = what it was when it was pruned, `zero`.
        regrow_after_ramp: keep dropping and regrowing once the final sparsity is reached.
        offline_regrow: the momentum encoder drops and regrows too, by the online score.
        mp_on: rank by magnitude the `masked` weights (a pruned one returns only by regrowth) or
            the `latent` ones.
    """

    name: str = "synccp"
    initial: float = 0.3
    gap: float = 0.3
    sparser: str = "online"
    initial_allocation: str = "erk"
    csi: CSIConfig = field(default_factory=CSIConfig)
    score_momentum: float = 0.9
    drop_start: float = 0.5
    drop_end: float = 0.005
    regrow_init: str = "latent"
    regrow_after_ramp: bool = True
    offline_regrow: bool = False
    mp_on: str = "masked"

    def __post_init__(self):
        _require_choice("sparser", self.sparser, ("online", "offline"))
        self._check_gaps()
        super().__post_init__()
        _require_choice("initial_allocation", self.initial_allocation, ("erk", "er", "uniform"))
        _require_choice("regrow_init", self.regrow_init, ("latent", "zero"))
        _require_choice("mp_on", self.mp_on, ("masked", "latent"))
        for key in ("score_momentum", "drop_start", "drop_end"):
            if not 0 <= getattr(self, key) < 1:
                raise ConfigError(f"sparse.{key}={getattr(self, key)} must be in [0, 1).")
        if self.csi.deadline >= self.ramp_end and self.csi.mode in ("normalized", "absolute"):
            raise ConfigError(
                f"sparse.csi.deadline={self.csi.deadline} must be before "
                f"sparse.ramp_end={self.ramp_end}: a ramp that starts last would have no room."
            )

    @property
    def momentum(self) -> tuple[float, float]:
        """Initial and final sparsity of the momentum encoder (Eq. 12)."""
        signed = self.gap if self.sparser == "online" else -self.gap
        pairs = ((self.momentum_initial, self.initial), (self.momentum_final, self.final))
        first, last = (_clean(online - signed) if own is None else own for own, online in pairs)
        return first, last

    def _check_gaps(self) -> None:
        if not 0 <= self.gap < 1:
            raise ConfigError(f"sparse.gap={self.gap} must be at least 0 and below 1.")
        sign = 1 if self.sparser == "online" else -1
        for when, online, own in zip(
            ("initial", "final"), (self.initial, self.final), self.momentum, strict=True
        ):
            if abs(sign * (online - own) - self.gap) >= TOLERANCE:
                raise ConfigError(
                    f"sparse.{when}={online} and sparse.momentum_{when}={own} differ by "
                    f"{_clean(sign * (online - own))}, but sparse.gap={self.gap} (sparser: "
                    f"{self.sparser}). The gap is constant during training: give "
                    f"momentum_{when}={_clean(online - sign * self.gap)}, or leave "
                    f"momentum_{when} out, or set sparse.gap."
                )
            if getattr(self, f"momentum_{when}") is None and not 0 <= own < 1:
                raise ConfigError(
                    f"sparse.{when}={online} with sparse.gap={self.gap} (sparser: {self.sparser}) "
                    f"leaves the momentum encoder a sparsity of {own}. Choose a smaller sparse.gap."
                )


METHODS: dict[str, type[SparseConfig]] = {"synccp": SyncCPConfig, "gmp": GMPConfig}


def build(section: str | Mapping[str, Any] | SparseConfig) -> SparseConfig:
    """The checked configuration of a `sparse:` section.

    Args:
        section: a method's name, or a mapping with `name` and any of that method's keys.

    Raises:
        ConfigError: for an unknown method or key, a wrong type, or values that contradict.
    """
    if isinstance(section, SparseConfig):
        return section
    if isinstance(section, str):
        section = {"name": section}
    if not isinstance(section, Mapping):
        raise ConfigError(
            f"sparse={section!r}: expected a method's name or a mapping with its keys. "
            f"{did_you_mean('', METHODS)}"
        )
    name = section.get("name")
    if name not in METHODS:
        what = "sparse.name is missing" if name is None else f"sparse.name={name!r} is unknown"
        raise ConfigError(f"{what}. {did_you_mean(name or '', METHODS)}")
    return fill(METHODS[name], section, "sparse")


def to_dict(config: SparseConfig) -> dict[str, Any]:
    """Plain data (lists for tuples) that `build` turns into the same configuration again."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()}


def store() -> None:
    """Register every method as an entry of Hydra's group `sparse`; twice changes nothing."""
    from hydra.core.config_store import ConfigStore

    for name, schema in METHODS.items():
        # plain data: a frozen dataclass would become a read-only node that nobody can override
        ConfigStore.instance().store(group="sparse", name=name, node=to_dict(schema()))


def _require_choice(key: str, value: str, choices: tuple, extra: tuple = ()) -> None:
    if value not in choices:
        raise ConfigError(f"Unknown sparse.{key}={value!r}. {did_you_mean(value, choices + extra)}")


def _require_rising(first_key: str, first: float, last_key: str, last: float) -> None:
    if last < first:
        raise ConfigError(
            f"sparse.{last_key}={last} is below sparse.{first_key}={first}: sparsity only grows "
            f"during training. Swap them, or lower sparse.{first_key}."
        )


def _clean(value: float) -> float:
    """0.8 - 0.3 is 0.5, not 0.5000000000000001, in messages and files."""
    return round(value, 12)
