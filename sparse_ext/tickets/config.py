# SPDX-License-Identifier: MIT
"""The sections `tickets:`, `retrain:` and `ticket:`: keys, defaults, checks (free of torch)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from solo.args.schema import Pretrain
from solo.errors import ConfigError, did_you_mean
from sparse_ext.config.reading import fill

RESETS = ("winning_ticket", "random_reinit")
INITS = (*RESETS, "final")
MASKS = ("ticket", "random_global", "random_layer", "natural")
IMAGENET = 1_281_167
MOST_LEVELS = 30


@dataclass(frozen=True)
class TicketsConfig:
    """A sweep: train, prune the smallest weights globally, reset, train again.

    Attributes:
        levels: prunings after the dense run; 30 leave 0.1% of the weights.
        rate: share of the remaining weights that each of them removes.
        reset: what the next level starts from: the dense run's weights at the rewind point
            (`winning_ticket`), or a fresh draw (`random_reinit`).
        rewind_samples: training images that the dense run has seen at the rewind point; 0 is the
            initialisation itself.
        layers: globs of module names; only these are pruned. Empty: every convolution and linear
            layer of the encoder, stem included.
        first_convs: instead of `layers`: the first so many convolutions.
        start: weights that the dense run starts from (safetensors, such as the `final` of a
            sweep's level 0, or a checkpoint); empty: the method's own initialisation.
        dir: run folders are `<dir>/<name>/seed-<seed>`.
        figure: which plot the curve belongs to.
        curve: its name in the legend; empty: the run's name.
    """

    levels: int = MOST_LEVELS
    rate: float = 0.2
    reset: str = "winning_ticket"
    rewind_samples: int = 0
    layers: tuple[str, ...] = ()
    first_convs: int = 0
    start: str = ""
    dir: str = "tickets"
    figure: str = "tickets"
    curve: str = ""

    def __post_init__(self) -> None:
        _choice("tickets.reset", self.reset, RESETS)
        if self.levels < 1:
            raise ConfigError(
                f"tickets.levels={self.levels}: a sweep without levels prunes nothing; write at "
                "least 1, or train with main_pretrain.py"
            )
        if not 0 < self.rate < 1:
            raise ConfigError(f"tickets.rate={self.rate} must be between 0 and 1, such as 0.2")
        for key in ("rewind_samples", "first_convs"):
            if getattr(self, key) < 0:
                raise ConfigError(f"tickets.{key}={getattr(self, key)} must not be negative")
        if self.layers and self.first_convs:
            raise ConfigError("tickets.layers and tickets.first_convs exclude each other")


@dataclass(frozen=True)
class RetrainConfig:
    """Training under the masks of a sweep, each from its own start.

    Attributes:
        source: run folder of the sweep.
        init: `winning_ticket` (the sweep's rewind point), `random_reinit`, or `final` (the weights
            that the sweep trained under that mask: transfer of a pruned representation).
        masks: `ticket` (the sweep's), `random_global` and `random_layer` (as many weights, over
            the network or in each layer), `natural` (random, but weights that the dense run left
            at machine zero go first).
        levels: which levels; empty: all that the sweep has finished.
        dir: run folders are `<dir>/<name>/seed-<seed>`.
        figure: which plot the curve belongs to.
        curve: its name in the legend; empty: the run's name.
    """

    source: str = ""
    init: str = "winning_ticket"
    masks: str = "ticket"
    levels: tuple[int, ...] = ()
    dir: str = "tickets"
    figure: str = "tickets"
    curve: str = ""

    def __post_init__(self) -> None:
        _choice("retrain.init", self.init, INITS)
        _choice("retrain.masks", self.masks, MASKS)
        if not self.source:
            raise ConfigError(
                "retrain.source is missing: give the run folder of a sweep, such as "
                "retrain.source=tickets/rotnet-cifar10/seed-5"
            )
        if self.masks != "ticket" and self.init != "random_reinit":
            raise ConfigError(
                f"retrain.masks={self.masks} goes with retrain.init=random_reinit: a random mask "
                f"has no ticket"
            )


@dataclass(frozen=True)
class TicketConfig:
    """One training under fixed masks; the two programs above write it, users need not.

    Attributes:
        masks: mask file.
        weights: weight file that the encoder starts from; empty: the method's initialisation.
        checksum: of both contents, so that a run resumes only what it began.
        initial: where the weights before the first step go; empty: nowhere.
        rewind: where the weights after `rewind_step` optimizer steps go; empty: nowhere.
        rewind_step: see above.
    """

    masks: str = ""
    weights: str = ""
    checksum: str = ""
    initial: str = ""
    rewind: str = ""
    rewind_step: int = 0


@dataclass(frozen=True)
class TicketsProgram(Pretrain):
    """Everything that `main_tickets.py` reads: one of the two sections, and a pretraining run."""

    tickets: TicketsConfig = field(default_factory=TicketsConfig)
    retrain: RetrainConfig = field(default_factory=lambda: RetrainConfig(source="FOLDER"))


def build(schema: type, section: Any, path: str) -> Any:
    """The checked configuration of the `tickets:` section.

    Raises:
        ConfigError: it is no section, has an unknown key, a wrong type or a bad value.
    """
    if not isinstance(section, Mapping):
        names = [item.name for item in fields(schema)]
        raise ConfigError(f"{path}={section!r}: expected a section with keys {', '.join(names)}")
    return fill(schema, section, path)


def plain(config: Any) -> dict[str, Any]:
    """A configuration as plain data, with lists for tuples."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()}


def store() -> None:
    """Register the Hydra groups: `+tickets=cifar`, `+retrain=random_global`; twice changes nothing.

    Rewind points: one epoch of CIFAR-10, three of ImageNet (supplement 6.1), one of the digits.
    """
    from hydra.core.config_store import ConfigStore

    tickets = {"sweep": 0, "cifar": 50_000, "imagenet": 3 * IMAGENET, "digits": 2_874}
    for name, samples in tickets.items():
        node = plain(TicketsConfig(rewind_samples=samples))
        ConfigStore.instance().store(group="tickets", name=name, node=node)
    kinds = {name: ("ticket", name) for name in INITS}
    kinds |= {name: (name, "random_reinit") for name in MASKS if name != "ticket"}
    for name, (masks, init) in kinds.items():
        node = {**plain(RetrainConfig(source="-", masks=masks, init=init)), "source": ""}
        ConfigStore.instance().store(group="retrain", name=name, node=node)


def _choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{key}='{value}' is unknown. {did_you_mean(value, choices)}")
