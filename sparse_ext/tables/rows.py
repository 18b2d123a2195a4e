# SPDX-License-Identifier: MIT
"""Rows of a table: recipe, overrides, and the figures that the paper prints.

Everything comes from `synccp.yaml`. Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from solo.errors import ConfigError, did_you_mean

FILE = Path(__file__).with_name("synccp.yaml")
SCALES = ("paper", "small")
FIGURES = ("acc", "std", "momentum_acc", "training", "inference", "megabytes")


@dataclass(frozen=True)
class Row:
    """One experiment.

    Attributes:
        table: its table, such as `table4`.
        name: unique within the table.
        dataset: cifar10, cifar100 or imagenet.
        kind: `ssl` (pretraining, then linear evaluation), `finetune`, or `supervised`.
        method: name of the sparse method; None trains dense.
        recipe: YAML file of the training, below `scripts`, without its ending.
        linear: the same of the linear evaluation; None for other kinds.
        overrides: `key=value` behind the recipe.
        encoders: which encoders are evaluated.
        source: `table/row` whose encoder is fine-tuned.
        images: training images per class are cut so that so many remain; None keeps all.
        expected: epochs, images and backbone of the paper's run.
        paper: printed figures, see `synccp.yaml`.
        note: what the paper leaves open or contradicts here.
    """

    table: str
    name: str
    dataset: str
    kind: str
    method: str | None
    recipe: str
    linear: str | None
    overrides: tuple[str, ...]
    encoders: tuple[str, ...] = ("online",)
    source: str | None = None
    images: int | None = None
    expected: Mapping[str, Any] = field(default_factory=dict)
    paper: Mapping[str, float] = field(default_factory=dict)
    note: str = ""

    @property
    def title(self) -> str:
        """For progress displays."""
        return f"{self.table} {self.name}"


@cache
def _data() -> dict[str, Any]:
    import yaml

    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


def title(table: str) -> str:
    """What a table shows, with its note."""
    found = _table(table)
    return ". ".join(filter(None, (found["title"], found.get("note", "").rstrip("."))))


def rows(table: str, dataset: str, scale: str = "paper") -> dict[str, Row]:
    """The rows of a table on a data set, by name.

    Raises:
        ConfigError: no such table, scale, or no row of it on that data set at that scale.
    """
    specs = _table(table)["rows"]
    chosen = [name for name, spec in specs.items() if dataset in spec["paper"]]
    if not chosen:
        known = sorted({d for spec in specs.values() for d in spec["paper"]})
        raise ConfigError(f"{table} has no rows on '{dataset}'. {did_you_mean(dataset, known)}")
    if scale not in SCALES:
        raise ConfigError(f"--scale '{scale}' is unknown. {did_you_mean(scale, SCALES)}")
    if scale == "small":
        small = _data()["small"].get(table) if dataset == "cifar10" else None
        if small is None:
            raise ConfigError(f"{table} on {dataset} has no small scale; cifar10's table4 has one.")
        return {name: _row(table, name, dataset, small) for name in small["rows"]}
    return {name: _row(table, name, dataset) for name in chosen}


def find(name: str, among: Iterable[str]) -> str:
    """`name` if it is among these.

    Raises:
        ConfigError: it is not; the message has the nearest one.
    """
    among = list(among)
    if name not in among:
        raise ConfigError(f"There is no row '{name}'. {did_you_mean(name, among)}")
    return name


def _table(table: str) -> dict[str, Any]:
    tables = _data()["tables"]
    if table not in tables:
        raise ConfigError(f"There is no '{table}' here. {did_you_mean(table, tables)}")
    return tables[table]


def _row(table: str, name: str, dataset: str, small: Mapping[str, Any] | None = None) -> Row:
    spec = _table(table)["rows"][name]
    setting = _data()["settings"][spec["use"]]
    method = spec.get("method")
    usual = (small or setting).get("sparse", {}).get(method, {})
    sparse = {**spec.get("set", {}), **usual}
    overrides = [] if small else list(setting.get("overrides", []))
    if method is not None:
        overrides += [f"+sparse={method}", *_flat("sparse", sparse)]
    return Row(
        table=table,
        name=name,
        dataset=dataset,
        kind=setting.get("kind", "ssl"),
        method=method,
        recipe=(small or setting)["recipe"],
        linear=(small or setting).get("linear"),
        overrides=tuple(overrides),
        encoders=tuple(_table(table).get("encoders", ["online"])),
        source=spec.get("from"),
        images=small["images"] if small else None,
        expected=setting["expected"],
        paper=spec["paper"][dataset],
        note=spec.get("note", ""),
    )


def _flat(prefix: str, section: Mapping[str, Any]) -> list[str]:
    """`a.b=1` for every leaf of a nested mapping."""
    found: list[str] = []
    for key, value in section.items():
        if isinstance(value, Mapping):
            found += _flat(f"{prefix}.{key}", value)
        else:
            text = str(value).lower() if isinstance(value, bool) else str(value)
            found.append(f"{prefix}.{key}={text}")
    return found
