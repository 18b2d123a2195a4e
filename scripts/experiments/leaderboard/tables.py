# SPDX-License-Identifier: MIT
"""The cells as rows: mean, standard deviation, differences to dense, as a Markdown table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from scripts.experiments.leaderboard.statistics import Difference, Spread, paired, spread

DASH = "–"
TUNED = ("asp",)  # methods that start from the trained dense encoder: its cost comes on top
HEAD = (
    *("method", "masks", "sparsity", "linear top-1 (%)", "minus dense [95% interval]"),
    *("kNN top-1 (%)", "minus dense", "MACs (M)", "file (kB)", "training cost", "CPU s", "setting"),
)


@dataclass(frozen=True)
class Row:
    """Every seed of one method at one level.

    Attributes:
        method: its name.
        granularity: of its masks.
        level: sparsity, or the budget of channel gates, or None.
        cells: by seed.
        branch: of a training that makes two networks; empty for the one that it is about.
    """

    method: str
    granularity: str
    level: float | None
    cells: Mapping[int, Mapping[str, Any]]
    branch: str = ""

    @property
    def title(self) -> str:
        """In Markdown."""
        name = self.method if self.method == "dense" else f"`{self.method}`"
        return f"{name}, {self.branch} branch" if self.branch else name

    def values(self, key: str) -> dict[int, float]:
        """A figure by seed; seeds without it are left out."""
        return {s: c[key] for s, c in self.cells.items() if c.get(key) is not None}

    def spread(self, key: str) -> Spread | None:
        """Of a figure over the seeds; None where no cell has it."""
        found = self.values(key)
        return spread(list(found.values())) if found else None


def rows(cells: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Cells that are results, not of the search, by method and level, in their order."""
    found: dict[tuple, dict[int, Mapping[str, Any]]] = {}
    for cell in cells:
        if cell["purpose"] != "result":
            continue
        level = cell["sparsity"] if cell["sparsity"] is not None else cell.get("budget")
        found.setdefault((cell["method"], cell["granularity"], level), {})[cell["seed"]] = cell
    every = [Row(*key, by_seed) for key, by_seed in found.items()]  # type: ignore[arg-type]
    return [one for row in every for one in (row, _dense_branch(row)) if one is not None]


def _dense_branch(row: Row) -> Row | None:
    """The other network of a training that makes two; None where there is none."""
    prefix = "dense_branch_"
    cells = {
        seed: {
            **cell,
            **{k.removeprefix(prefix): v for k, v in cell.items() if k.startswith(prefix)},
            "macs_effective": cell["macs_dense"],
        }
        for seed, cell in row.cells.items()
        if f"{prefix}linear_acc1" in cell
    }
    return replace(row, cells=cells, branch="dense") if cells else None


def table(cells: Sequence[Mapping[str, Any]]) -> str:
    """All rows in Markdown, dense first, then by granularity and level, the best on top."""
    every = rows(cells)
    dense = next((row for row in every if row.method == "dense"), None)
    ordered = sorted(every, key=_place)
    lines = [HEAD, ["---"] * len(HEAD), *(_line(row, dense) for row in ordered)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _place(row: Row) -> tuple:
    kinds = ("none", "element", "2:4", "1:4", "block8", "filter", "gate")
    kind = kinds.index(row.granularity) if row.granularity in kinds else len(kinds)
    found = row.spread("linear_acc1")
    return kind, row.level or 0.0, -found.mean if found else 0.0


def _line(row: Row, dense: Row | None) -> list[str]:
    gate = row.granularity == "gate"
    before = "1 + " if row.method in TUNED else ""
    other = None if dense is None or dense is row else dense
    return [
        row.title,
        "gates" if gate else row.granularity.replace("none", DASH),
        _level(row),
        _accuracy(row.spread("linear_acc1")),
        _minus(row, other, "linear_acc1", interval=True),
        _accuracy(row.spread("knn_acc1")),
        _minus(row, other, "knn_acc1"),
        _number(row.spread("macs_effective"), 1e-6, 2),
        _number(row.spread("bytes"), 1e-3, 0),
        before + _number(row.spread("training_cost_A"), 1, 2) if row.method != "dense" else "1",
        _number(row.spread("seconds"), 1, 0),
        ", ".join(sorted({c["setting"] for c in row.cells.values() if c["setting"]})) or DASH,
    ]


def _level(row: Row) -> str:
    """What was asked for, and what is there where that is something else."""
    if row.level is None:
        return DASH
    if row.granularity == "gate":
        return f"budget {row.level:.0%}"
    found = row.spread("measured_sparsity")
    differs = found is not None and abs(found.mean - row.level) > 0.005
    return f"{row.level:.0%} (measured {found.mean:.0%})" if differs else f"{row.level:.0%}"  # type: ignore[union-attr]


def _accuracy(found: Spread | None) -> str:
    if found is None:
        return DASH
    return (
        f"{found.mean:.1f} ± {found.sd:.1f} ({found.n})"
        if found.sd is not None
        else (f"{found.mean:.1f} (1)")
    )


def _minus(row: Row, dense: Row | None, key: str, interval: bool = False) -> str:
    if dense is None:
        return DASH
    found: Difference | None = paired(row.values(key), dense.values(key))
    if found is None:
        return DASH
    ends = ""
    if interval:
        ends = " [–]" if found.low is None else f" [{found.low:+.1f}, {found.high:+.1f}]"
    return f"{found.mean:+.1f}{ends}"


def _number(found: Spread | None, scale: float, digits: int) -> str:
    return DASH if found is None else f"{found.mean * scale:,.{digits}f}"
