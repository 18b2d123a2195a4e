# SPDX-License-Identifier: MIT
"""Rows of a table: recipe, overrides, evaluations, and the figures that the paper prints.

Everything comes from the YAML files beside this module, one per paper. Importing this module does
not import torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from solo.errors import ConfigError, did_you_mean

FOLDER = Path(__file__).parent
SCALES = ("paper", "small")
KINDS = ("linear", "finetune", "knn")


@dataclass(frozen=True)
class Evaluation:
    """How a trained encoder is evaluated.

    Attributes:
        name: unique within its row.
        kind: one of `KINDS`: linear evaluation, fine-tuning, or 1-nearest-neighbour (Euclidean).
        encoder: `online` or `momentum`.
        branch: branch of a gated encoder; None for others.
        recipe: YAML file of `main_linear.py`, below `scripts`, without its ending; none for kNN.
        overrides: `key=value` behind the recipe.
    """

    name: str
    kind: str = "linear"
    encoder: str = "online"
    branch: str | None = None
    recipe: str = ""
    overrides: tuple[str, ...] = ()

    @property
    def prefix(self) -> str:
        """What stands before the names of its figures: `acc`, `momentum_acc`, `gated_acc`."""
        return "" if self.name == "online" else f"{self.name}_"


@dataclass(frozen=True)
class Row:
    """One experiment.

    Attributes:
        table: its table, such as `table4` or `dual_table1`.
        name: unique within the table.
        dataset: what it is trained and evaluated on (of kind `evaluation`: evaluated only).
        kind: `ssl` (pretraining, then evaluations), `finetune`, `supervised`, or `evaluation`
            (of another row's encoder).
        section: of the configuration that holds the method: `sparse` or `gating`.
        method: name of the sparse or gating method; None trains dense.
        recipe: YAML file of the training, below `scripts`, without its ending.
        overrides: `key=value` behind the recipe.
        evaluations: of the trained encoder.
        source: `<table>-<dataset>/<row>` whose encoder is fine-tuned or evaluated.
        images: training images per class are cut so that so many remain; None keeps all.
        expected: epochs, images, backbone and width (if not 64) of the paper's run.
        paper: printed figures, see the YAML files.
        note: what the paper leaves open or contradicts here.
    """

    table: str
    name: str
    dataset: str
    kind: str
    section: str
    method: str | None
    recipe: str
    overrides: tuple[str, ...]
    evaluations: tuple[Evaluation, ...] = ()
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
def _data() -> dict[str, dict[str, Any]]:
    """The tables of all papers by name; each knows the `settings` and the `section` of its file."""
    import yaml

    tables = {}
    for file in sorted(FOLDER.glob("*.yaml")):
        paper = yaml.safe_load(file.read_text(encoding="utf-8"))
        for name, table in paper["tables"].items():
            small = paper.get("small", {}).get(name)
            shared = {"section": paper["section"], "settings": paper["settings"], "small": small}
            tables[name] = {**shared, **table}
    return tables


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
        small = _table(table)["small"] if dataset == "cifar10" else None
        if small is None:
            have = ", ".join(name for name, found in _data().items() if found["small"])
            raise ConfigError(f"{table} on {dataset} has no small scale; cifar10 has one: {have}.")
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
    if table not in _data():
        raise ConfigError(f"There is no '{table}' here. {did_you_mean(table, _data())}")
    return _data()[table]


def _row(table: str, name: str, dataset: str, small: Mapping[str, Any] | None = None) -> Row:
    found = _table(table)
    spec, section = found["rows"][name], found["section"]
    settings = found["settings"]
    setting = settings.get(f"{spec['use']}-{dataset}") or settings[spec["use"]]
    kind, method = setting.get("kind", "ssl"), spec.get("method")
    usual = (small or setting).get(section, {}).get(method, {})
    overrides = [] if small else list(setting.get("overrides", []))
    if method is not None and kind != "evaluation":
        chosen = {**spec.get("set", {}), **usual}
        overrides += [f"+{section}={method}", *_flat(section, chosen)]
    return Row(
        table=table,
        name=name,
        dataset=dataset,
        kind=kind,
        section=section,
        method=method,
        recipe=(small or setting).get("recipe", ""),
        overrides=(*overrides, *spec.get("overrides", ())),
        evaluations=_evaluations(found, spec, small or setting),
        source=_source(spec.get("from"), dataset),
        images=small["images"] if small else None,
        expected=setting["expected"],
        paper=spec["paper"][dataset],
        note=spec.get("note", ""),
    )


def _source(name: str | None, dataset: str) -> str | None:
    """`<table>/<row>` is of the same data set."""
    if name is None or "-" in name.partition("/")[0]:
        return name
    table, _, row = name.partition("/")
    return f"{table}-{dataset}/{row}"


def _evaluations(
    table: Mapping[str, Any], spec: Mapping[str, Any], setting: Mapping[str, Any]
) -> tuple[Evaluation, ...]:
    """The row's evaluations, or else those of the table; a recipe is that of the row's setting."""
    known = table.get("evaluations", {"online": {}})
    names = spec.get("evaluations", list(known)) if setting.get("linear") else []
    found = []
    for name in names:
        asked = dict(known[name])
        kind = asked.setdefault("kind", "linear")
        own = asked.pop("overrides", ())
        if kind == "knn":
            found.append(Evaluation(name, **asked))
            continue
        overrides = (*setting.get(f"{kind}_overrides", ()), *own)
        found.append(Evaluation(name, recipe=setting[kind], overrides=overrides, **asked))
    return tuple(found)


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
