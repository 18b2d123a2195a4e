# SPDX-License-Identifier: MIT
"""What every method's section of the configuration holds, and how values are checked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar

from solo.errors import ConfigError, did_you_mean
from solo.registry import Registry
from sparse_ext.config.budget_names import Budget, read_budget
from sparse_ext.config.granularity_names import Spelling, read
from sparse_ext.config.scorer_names import NEEDS, scorer_named

_RULES = "sparse_ext.allocation.budgets"

#: how kept units are dealt out to layers: name -> rule(shapes, density, sizes), units per layer
ALLOCATIONS: Registry[Any] = Registry(
    "allocation",
    {"erk": f"{_RULES}:erk", "er": f"{_RULES}:er", "uniform": f"{_RULES}:uniform"},
)


#: how scores of several layers are compared, where layers have no budgets of their own
COMPARED = ("global", "isomorphic")


def register_allocation(name: str, rule: Any) -> None:
    """Make a rule known that deals budgets out to layers, so that `sparse.allocation=NAME` uses it.

    Args:
        name: what users write.
        rule: `rule(shapes, density, sizes)`, of weight shapes and units per layer by name, to kept
            units per layer, which must add up to round(density * sum of sizes); or where it is:
            `module:function`. `sparse_ext.allocation.exact_budgets` makes such numbers.

    Raises:
        ConfigError: there is another rule of that name.
    """
    ALLOCATIONS.register(name, rule)


@dataclass(frozen=True)
class SparseConfig:
    """The settings that all methods of weight sparsity share.

    Attributes:
        name: the method.
        granularity: what is pruned as one unit: `element` (single weights), `2:4` (any N:M: N of M
            consecutive input channels stay), `block8` (8 x 8 channels at one kernel position; any
            size, `block8-merged` = all kernel positions), `filter`. Sparsity then is the share of
            units that are pruned; with N:M the share of groups that are N:M, at most 1.
        initial: sparsity of the online encoder before the ramp, in [0, 1).
        final: its sparsity after the ramp, in [0, 1); left out: 0.8, or 1 with N:M.
        momentum_initial: the same for the momentum encoder; None = derived by the method.
        momentum_final: the same for the momentum encoder; None = derived by the method.
        update_period: optimizer steps between two mask updates; None = min(1000, T // 195) for a
            run of T optimizer steps (1000 in the CIFAR runs of the paper).
        ramp_end: fraction of the run at which the final sparsity is reached.
        ema_mode: how the momentum encoder follows: `latent` averages the dense views of both
            encoders, `leaky` the stored weights, zeros included, `hold` only where both are kept.
        score: what a weight is worth; the largest are kept: `magnitude`, `snip` (|g W| of the
            step's gradient), `taylor` ((g W)^2, of a filter or channel the square of the sum),
            `mean_taylor` (|W| times the running mean of |g|), or the name of a registered one.
        stem_dense: leave the first convolution out of the prunable set.
        exclude: glob patterns of module names that stay dense.
        budget: what is left of the network in the end, in the place of `final` and with `coupled`:
            `params:0.5` (half of the parameters), `macs:0.5` (of the multiply-accumulates per
            image) or `latency:0.5` (of the time per image, measured before the first step). All
            other sparsities of the run then are shares of these costs that are gone, too.
        coupled: with `filter` or `block<size>`: prune whole channels (or that many neighbours) at
            once, from all layers that share them, so that they can be removed physically. Sparsity
            then is the share of channel groups (see `sparse_ext.pruning.coupled_units`).
        slim_at: when masks become final and training goes on with physically smaller encoders:
            an optimizer step, or a fraction of the run (below 1); after the ramp.
        multiple: with `slim_at`: as many empty channels stay as make each width a multiple of this.
        kernel: how masked layers are computed on the CPU (see docs/kernels.md): `auto` takes for
            every layer whichever of `element` and `dense` is faster here, by measurement, and means
            `dense` where that cannot be, as on other devices; `element` multiplies by kept weights
            only, one by one, `block` skips pruned 8x8 blocks wherever a layer has lost 75% of them,
            `dense` multiplies by zeros, to the same last bits on any machine.
        seed: of random masks; None = the run's seed.
        debug: check the storage invariants after every step (slow).
    """

    PAIR_ONLY: ClassVar[tuple[str, ...]] = ("momentum_initial", "momentum_final", "ema_mode")
    #: what a score may be made of, when this method makes its masks (see `NEEDS`)
    SCORED_BY: ClassVar[tuple[str, ...]] = ("weight", "gradient", "mean_gradient")

    name: str = ""
    granularity: str = "element"
    initial: float = 0.0
    final: float = None  # type: ignore[assignment]  # see __post_init__
    momentum_initial: float | None = None
    momentum_final: float | None = None
    update_period: int | None = None
    ramp_end: float = 0.69
    ema_mode: str = "latent"
    score: str = "magnitude"
    stem_dense: bool = True
    exclude: tuple[str, ...] = ()
    coupled: bool = False
    budget: str | None = None
    slim_at: float | None = None
    multiple: int = 1
    kernel: str = "auto"
    seed: int | None = None
    debug: bool = False

    def __post_init__(self):
        self.fill_in()
        for key in ("initial", "final", "momentum_initial", "momentum_final"):
            self._check_sparsity(key, getattr(self, key))
        require_rising("initial", self.initial, "final", self.final)
        require_rising("momentum_initial", self.momentum[0], "momentum_final", self.momentum[1])
        require_choice("ema_mode", self.ema_mode, ("latent", "leaky", "hold"))
        if self.update_period is not None and self.update_period < 1:
            raise ConfigError(f"sparse.update_period={self.update_period} must be at least 1 step.")
        if not 0 < self.ramp_end <= 1:
            raise ConfigError(f"sparse.ramp_end={self.ramp_end} is not a fraction in (0, 1].")
        self._check_score()
        self._check_channels()
        self._check_kernel()

    def fill_in(self) -> None:
        """Set the defaults that depend on other keys; twice changes nothing."""
        if self.spending is not None:
            self._fill_in_budget(clean(1 - self.spending.share))
        if self.final is None:
            derive(self, "final", 1.0 if self.some_survive else 0.8)

    def momentum_options(self) -> list[str]:
        """Keys that were set though they mean nothing without a momentum encoder."""
        plain = {f.name: f.default for f in fields(self)}
        found = [key for key in self.PAIR_ONLY if getattr(self, key) != plain[key]]
        return [key for key in found if key != "gap" or getattr(self, key)]

    @cached_property
    def spelling(self) -> Spelling:
        """The granularity that the key `granularity` names, by its parts."""
        return read(self.granularity)

    @cached_property
    def spending(self) -> Budget | None:
        """The budget that the key `budget` names."""
        return None if self.budget is None else read_budget(self.budget)

    def _fill_in_budget(self, final: float) -> None:
        if self.final not in (None, final):
            raise ConfigError(
                f"sparse.budget={self.budget} and sparse.final={self.final} are two goals: leave "
                f"one of them out."
            )
        if not self.coupled:
            raise ConfigError(
                f"sparse.budget={self.budget} counts what is saved when channels are removed: set "
                f"sparse.coupled=true and sparse.granularity=filter (or block8)."
            )
        derive(self, "final", final)

    @property
    def some_survive(self) -> bool:
        """Whether a pruned unit keeps some of its weights: N:M."""
        return self.spelling.form.some_survive  # type: ignore[union-attr]

    def in_weights(self) -> str:
        """What a final share of N:M groups below 1 is as a share of weights; else empty."""
        n, m = self.spelling.n, self.spelling.m
        if not (self.some_survive and m) or self.final == 1:
            return ""
        return (
            f"sparse.final={self.final:g} with {n}:{m} is {self.final:.0%} of the groups, so "
            f"{self.final * (1 - n / m):.1%} of the prunable weights become zero; all groups, "
            f"{1 - n / m:.0%} of the weights, without sparse.final"
        )

    @property
    def ranking(self) -> str:
        """The scorer that decides which weights are kept."""
        return self.score

    @property
    def start_is_given(self) -> bool:
        """Whether the user named the step at which the ramp starts."""
        return False

    @property
    def momentum(self) -> tuple[float, float]:
        """Initial and final sparsity of the momentum encoder: the online ones where not given."""
        first, last = self.momentum_initial, self.momentum_final
        return (self.initial if first is None else first, self.final if last is None else last)

    def obstacle(self, shape: tuple[int, ...]) -> str:
        """Why this method leaves a layer of that weight shape dense; empty if it does not."""
        return ""

    def _check_score(self) -> None:
        """A score is made of what there is when masks are made."""
        needs = scorer_named(self.ranking).needs
        if needs not in self.SCORED_BY:
            raise ConfigError(
                f"sparse.score={self.score} is made of {NEEDS[needs]}, and sparse.name={self.name} "
                f"has {' or '.join(NEEDS[need] for need in self.SCORED_BY)} when it makes its "
                f"masks. Choose another score, such as magnitude."
            )

    def _check_channels(self) -> None:
        """`coupled` and `slim_at` are for granularities that can empty a channel."""
        channels = self.spelling.form.channels  # type: ignore[union-attr]
        asked = {"coupled": self.coupled, "slim_at": self.slim_at is not None}
        for key in (key for key, set_ in asked.items() if set_ and not channels):
            raise ConfigError(
                f"sparse.{key}={getattr(self, key)} removes channels, and "
                f"sparse.granularity={self.granularity} empties none: set sparse.granularity to "
                f"filter or block8."
            )
        if self.multiple < 1:
            raise ConfigError(
                f"sparse.multiple={self.multiple}: widths are multiples of 1 or more."
            )
        if self.multiple > 1 and self.slim_at is None:
            raise ConfigError(
                f"sparse.multiple={self.multiple} rounds the widths that sparse.slim_at leaves, "
                f"which is not set: set it, or give --multiple to the export."
            )
        at = self.slim_at
        if at is not None and (at < 0 or (at > 1 and at % 1)):
            raise ConfigError(
                f"sparse.slim_at={at} is neither a fraction of the run (below 1) nor a "
                f"number of optimizer steps."
            )

    def _check_kernel(self) -> None:
        """Kernels are for layers that keep their shape; `block` skips blocks of 8x8."""
        require_choice("kernel", self.kernel, ("auto", "element", "block", "dense"))
        if self.kernel in ("auto", "dense"):
            return
        spelling = self.spelling
        blocks = spelling.kind == "block" and not spelling.size % 8
        if self.kernel == "block" and not blocks:
            raise ConfigError(
                f"sparse.kernel=block skips pruned blocks of 8x8, and "
                f"sparse.granularity={self.granularity} makes none: set sparse.granularity=block8."
            )
        if self.slim_at is not None:
            raise ConfigError(
                f"sparse.kernel={self.kernel} and sparse.slim_at={self.slim_at} do not go "
                f"together: choose between skipping weights and removing channels."
            )

    def _check_sparsity(self, key: str, value: float | None) -> None:
        if value is None or 0 <= value < 1 or (value == 1 and self.some_survive):
            return
        if self.some_survive:
            raise ConfigError(
                f"sparse.{key}={value} is not a share of groups: with "
                f"sparse.granularity={self.granularity} it lies between 0 and 1 (all groups)."
            )
        raise ConfigError(
            f"sparse.{key}={value} is not a sparsity: it must be at least 0 and below 1 "
            f"(0.9 means that 90% of the weights are zero)."
        )


@dataclass(frozen=True)
class ConstantConfig(SparseConfig):
    """A method whose sparsity is `final` from the first step to the last; it has no ramp."""

    def __post_init__(self):
        super().__post_init__()
        refuse_unused(
            self, "initial", "momentum_initial", "ramp_end", why="its sparsity is constant"
        )


def require_choice(key: str, value: str, choices: Iterable[str], extra: Iterable[str] = ()) -> None:
    """Raise ConfigError with the nearest name unless `value` is one of `choices`."""
    if value not in choices:
        hint = did_you_mean(value, [*choices, *extra])
        raise ConfigError(f"Unknown sparse.{key}={value!r}. {hint}")


def require_rising(first_key: str, first: float, last_key: str, last: float) -> None:
    """Raise ConfigError if sparsity were to fall from `first` to `last`."""
    if last < first:
        raise ConfigError(
            f"sparse.{last_key}={last} is below sparse.{first_key}={first}: sparsity only grows "
            f"during training. Swap them, or lower sparse.{first_key}."
        )


def clean(value: float) -> float:
    """0.8 - 0.3 is 0.5, not 0.5000000000000001, in messages and files."""
    return round(value, 12)


def derive(config: Any, key: str, value: Any) -> None:
    """Set a default that depends on other keys; only from `__post_init__` of a frozen section."""
    object.__setattr__(config, key, value)


def refuse_unused(config: Any, *keys: str, why: str) -> None:
    """Raise ConfigError if a key that the method inherits without using it was set."""
    defaults = {f.name: f.default for f in fields(config)}
    for key in keys:
        if getattr(config, key) != defaults[key]:
            raise ConfigError(
                f"sparse.{key}={getattr(config, key)} has no effect on {config.name}: {why}. "
                f"Leave it out."
            )


def _fractions(config: Any, *keys: str) -> None:
    for key in keys:
        if not 0 <= getattr(config, key) < 1:
            raise ConfigError(f"sparse.{key}={getattr(config, key)} must be in [0, 1).")


@dataclass(frozen=True)
class FixedConfig(ConstantConfig):
    """Masks that do not depend on an update period."""

    def __post_init__(self):
        super().__post_init__()
        refuse_unused(self, "update_period", why="nothing happens every so many steps")


def _all_nm(config: Any) -> None:
    if not config.some_survive or config.final != 1:
        raise ConfigError(
            f"sparse.name={config.name} makes every group N:M: sparse.granularity="
            f"{config.granularity} with sparse.final={config.final} is not for it. Set a "
            f"granularity such as 2:4, and leave sparse.final out."
        )
