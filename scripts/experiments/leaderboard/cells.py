# SPDX-License-Identifier: MIT
"""What the leaderboard trains: its cells, the settings that are searched, and the order of both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

SEARCH_SEED = 100  # settings are chosen on this seed, which no reported figure comes from
SEARCH_LEVEL = 0.9
SEEDS, MORE_SEEDS = (0, 1, 2), (3, 4)
LEVELS = (0.9, 0.8, 0.95)
#: the rows that matter most, dense and these at the first level, get five seeds
MAIN = ("synccp", "granet_ssl", "granet", "gmp", "sd")
ELEMENT = (
    *("synccp", "gmp", "granet_ssl", "granet", "rigl", "rigl_itop"),
    *("random", "oneshot", "snip", "sd", "sdclr"),
)
#: granularity, sparsity, methods
STRUCTURES = (
    ("2:4", 0.5, ("synccp", "gmp", "sr_ste", "asp")),
    ("1:4", 0.75, ("synccp", "gmp", "sr_ste", "asp")),
    ("block8", 0.8, ("synccp", "gmp")),
    ("filter", 0.8, ("synccp", "gmp")),
)
BUDGETS = (0.3, 0.5, 0.1)
CHANNEL_GATES = ("vicreg_dual", "vicreg_gating")
OTHER_GATES = ("cdg", "cgnet", "fbs", "dgc")


@dataclass(frozen=True)
class Cell:
    """One training and its evaluation.

    Attributes:
        method: `dense`, a name behind `+sparse=` or one behind `+gating=`.
        granularity: of the masks; `gate` for gated encoders, `none` for dense ones.
        sparsity: share of the prunable weights that is zero; None where gates decide.
        seed: of the pretraining.
        budget: MACs that channel gates are trained to, over the dense ones.
        setting: name in `SETTINGS`; None = what the search chose.
    """

    method: str
    granularity: str
    sparsity: float | None
    seed: int
    budget: float | None = None
    setting: str | None = None

    @property
    def name(self) -> str:
        """Of its folder."""
        parts = [self.method]
        if self.granularity not in ("element", "none", "gate"):
            parts.append(self.granularity.replace(":", "of"))
        level = self.budget if self.sparsity is None else self.sparsity
        if self.method != "dense" and level is not None:
            parts.append(f"{100 * level:g}")
        if self.setting is not None:
            parts.append(self.setting)
        return "-".join([*parts, f"seed{self.seed}"])

    @property
    def gated(self) -> bool:
        """Whether the encoder decides per image."""
        return self.granularity == "gate"


#: Values of the few settings that are searched, by method and name of the choice; `default` is
#: what `sparse_ext.config` says. {epoch} is the number of optimizer steps in an epoch.
_RAMPS = {
    "default": (),
    "short": ("sparse.update_period={epoch}", "sparse.ramp_end=0.75"),
    "early": ("sparse.update_period={epoch}", "sparse.ramp_end=0.5"),
}
_SMALL_SWAPS = {
    name: (*values, *(("sparse.drop_start=0.1",) if values else ()))
    for name, values in _RAMPS.items()
}
_SWAPS = {
    "default": (),
    "short": ("sparse.update_period={epoch}", "sparse.drop_start=0.1", "sparse.update_end=0.75"),
    "early": ("sparse.update_period={epoch}", "sparse.drop_start=0.1", "sparse.update_end=0.5"),
}
_GATES: dict[str, tuple[str, ...]] = {
    "default": (),
    "open": ("gating.gate_bias_init=2.0",),
}
# the gates' losses are weighed for VICReg, whose own loss is much larger than LeJEPA's
_WEAK = ("gating.lamb=0.5", "gating.gamma=0", "gating.gate_bias_init=2.0")
_WARM_UP = ("gating.warmup_gate=True", "gating.warmup_epochs=8", "gating.gate_bias_init=2.0")
SETTINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "synccp": {
        name: (*values, *(("sparse.regrow_after_ramp=False",) if values else ()))
        for name, values in _SMALL_SWAPS.items()
    },
    "gmp": _RAMPS,
    "granet_ssl": _SMALL_SWAPS,
    "granet": _SMALL_SWAPS,
    "rigl": _SWAPS,
    "rigl_itop": _SWAPS,
    "random": {a: (f"sparse.allocation={a}",) for a in ("erk", "uniform", "global")},
    "oneshot": {f"at{p:g}": (f"sparse.prune_at={p}",) for p in (0.5, 0.25, 0.75)},
    "vicreg_gating": {**_GATES, "weak": _WEAK},
    "vicreg_dual": {**_GATES, "warm": _WARM_UP},
}


#: Settings that were tuned by hand before, with the quickstart's recipe: nothing is searched.
FIXED = {"synccp": "short"}


def cells(board: str) -> Iterator[Cell]:
    """All cells, the most valuable first, so that what is there at any time is balanced."""
    return iter(dict.fromkeys(BOARDS[board]()))


def _photographs() -> Iterator[Cell]:
    """Few rows, since a run takes long, at the settings that were chosen on the digits."""
    for seed in SEEDS:
        yield Cell("dense", "none", 0.0, seed)
        for method in ("synccp", "gmp", "granet_ssl"):
            yield Cell(method, "element", LEVELS[0], seed, setting="short")
        yield Cell("sd", "element", LEVELS[0], seed)


def _pair() -> Iterator[Cell]:
    """Another pretext, with an encoder pair: dense and SyncCP, at the settings of short runs."""
    for seed in SEEDS:
        yield Cell("dense", "none", 0.0, seed)
        yield Cell("synccp", "element", 0.8, seed, setting="short")
    for seed in SEEDS:
        yield Cell("synccp", "element", 0.9, seed, setting="short")


def _digits() -> Iterator[Cell]:
    for cell in (Cell("dense", "none", 0.0, 0), Cell("synccp", "element", 0.8, 0)):
        yield from (*searches(cell.method), *(replace(cell, seed=seed) for seed in SEEDS))
    for seed in SEEDS:
        for method in ELEMENT:
            yield from (*searches(method), Cell(method, "element", LEVELS[0], seed))
    for seed in SEEDS:
        yield from _others(seed)
    for seed in MORE_SEEDS:
        yield Cell("dense", "none", 0.0, seed)
        yield from (Cell(method, "element", LEVELS[0], seed) for method in MAIN)


def _others(seed: int) -> Iterator[Cell]:
    for granularity, sparsity, methods in STRUCTURES:
        yield from (Cell(method, granularity, sparsity, seed) for method in methods)
    for method in CHANNEL_GATES:
        gated = (Cell(method, "gate", None, seed, budget) for budget in BUDGETS)
        yield from (*searches(method), *gated)
    yield from (Cell(method, "gate", None, seed) for method in OTHER_GATES)
    for level in LEVELS[1:]:
        yield from (Cell(method, "element", level, seed) for method in ELEMENT)


def searches(method: str) -> list[Cell]:
    """The cells that choose the settings of a method; none where there is nothing to choose."""
    if method in FIXED:
        return []
    cell = Cell(method, "element", SEARCH_LEVEL, SEARCH_SEED)
    if method in CHANNEL_GATES:
        cell = Cell(method, "gate", None, SEARCH_SEED, BUDGETS[0])
    return [replace(cell, setting=name) for name in SETTINGS.get(method, ())]


BOARDS: dict[str, Callable[[], Iterator[Cell]]] = {
    "digits": _digits,
    "digits-mocov3": _pair,
    "cifar": _photographs,
}
