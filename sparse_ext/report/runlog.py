# SPDX-License-Identifier: MIT
"""What a run folder says: its configuration and its metrics as series over epochs."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from solo.errors import DataError, did_you_mean
from solo.files.results import read_results


class Series(NamedTuple):
    """A logged quantity: its values and when they were logged.

    Attributes:
        epochs: epochs that were finished when it was logged; may be fractions.
        values: finite numbers, one per epoch.
    """

    epochs: list[float]
    values: list[float]

    @property
    def last(self) -> float:
        """The newest value of the quantity."""
        return self.values[-1]


class RunLog:
    """A folder with `metrics.csv` and, for labels and evaluations, `args.json`, `results.json`.

    Args:
        folder: `<checkpoint.dir>/<method>/<version>`.

    Raises:
        DataError: there is no such folder, no metrics in it, or a file in it is damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.rows = _read_metrics(self.folder)
        self.args = _read_args(self.folder)
        self.results = read_results(self.folder)

    @cached_property
    def names(self) -> list[str]:
        """Logged quantities, in order of appearance, without Lightning's `_epoch` suffix."""
        found = dict.fromkeys(key for row in self.rows for key, value in row.items() if value)
        plain = [n.removesuffix("_epoch") for n in found if n not in ("epoch", "step")]
        return list(
            dict.fromkeys(
                n
                for n in plain
                if f"{n.removesuffix('_step')}_epoch" not in found or not n.endswith("_step")
            )
        )

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def get(self, name: str) -> Series | None:
        """The quantity, epoch means where both steps and epochs were logged; None if absent."""
        for column in (f"{name}_epoch", name):
            points = [
                (self._time(row), _number(row[column])) for row in self.rows if row.get(column)
            ]
            points = [(t, v) for t, v in points if v is not None and math.isfinite(v)]
            if points:
                return Series(*map(list, zip(*points, strict=True)))
        return None

    def series(self, name: str) -> Series:
        """The logged quantity called `name`, or None.

        Raises:
            DataError: it was not logged.
        """
        found = self.get(name)
        if found is None:
            raise DataError(
                f"{self.folder}: no '{name}' in metrics.csv. {did_you_mean(name, self.names)}"
            )
        return found

    def group(self, prefix: str) -> dict[str, Series]:
        """All quantities whose name begins with `prefix`, by the rest of the name."""
        names = [name for name in self.names if name.startswith(prefix)]
        return {n[len(prefix) :]: s for n in names if (s := self.get(n)) is not None}

    @cached_property
    def trigger_epoch(self) -> float | None:
        """Epochs finished when CSI started the ramp, None if it did not."""
        triggered = self.get("sparse/triggered")
        points = zip(*triggered, strict=True) if triggered else ()
        return next((epoch for epoch, value in points if value), None)

    @cached_property
    def steps_per_epoch(self) -> float:
        """Optimizer steps, from the last row that knows both."""
        ends = [(int(float(r["epoch"])), int(float(r["step"]))) for r in self._timed()]
        epoch, step = max(ends, default=(0, 0))
        return (step + 1) / (epoch + 1)

    @property
    def name(self) -> str:
        """The run's name as configured, or its folder."""
        return self.args.get("name") or self.folder.name

    @property
    def is_pretraining(self) -> bool:
        """Whether this is a run of main_pretrain.py."""
        return "method_kwargs" in self.args or any("class_loss" in name for name in self.names)

    @property
    def has_momentum_encoder(self) -> bool:
        """Whether the run trains a momentum encoder, by its method or by what it logged."""
        from solo.methods import METHODS
        from solo.methods.base_momentum import BaseMomentumMethod

        method = METHODS.get(str(self.args.get("method")))
        logged = "sparse/momentum_sparsity" in self
        return logged or (method is not None and issubclass(method, BaseMomentumMethod))

    def _timed(self) -> Iterator[dict[str, str]]:
        return (row for row in self.rows if row.get("epoch") and row.get("step"))

    def _time(self, row: dict[str, str]) -> float:
        if row.get("step"):
            return (float(row["step"]) + 1) / self.steps_per_epoch
        return float(row.get("epoch") or 0) + 1


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _read_metrics(folder: Path) -> list[dict[str, str]]:
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such run folder.")
    path = folder / "metrics.csv"
    if not path.is_file():
        inside = sorted(str(p.parent) for p in folder.rglob("metrics.csv"))
        hint = f"Did you mean '{inside[-1]}'?" if inside else "Runs of main_pretrain.py write it."
        raise DataError(f"{folder}: no metrics.csv in this folder. {hint}")
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise DataError(f"{path}: no metrics yet; wait for the end of the first epoch.")
    return rows


def _read_args(folder: Path) -> dict[str, Any]:
    path = folder / "args.json"
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: damaged, no JSON ({error}).") from error
