# SPDX-License-Identifier: MIT
"""Finished cells: read from their folders, and written as one list."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scripts.experiments.leaderboard.cells import SEARCH_SEED, Cell, cells
from solo.errors import ConfigError, did_you_mean
from solo.files.whole import write_text


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """Finished cells by name."""
    found = {}
    for path in sorted(folder.glob("runs/*/cell.json")):
        found[path.parent.name] = json.loads(path.read_text(encoding="utf-8"))
    return found


def named(board: str, name: str) -> Cell:
    """The cell of that name.

    Raises:
        ConfigError: there is none.
    """
    known = {cell.name: cell for cell in cells(board)}
    if name not in known:
        raise ConfigError(f"There is no cell '{name}'. {did_you_mean(name, known)}")
    return known[name]


def identity(cell: Cell) -> dict[str, Any]:
    """What tells a cell from the others, as its first keys."""
    return {
        "method": cell.method,
        "granularity": cell.granularity,
        "sparsity": cell.sparsity,
        "budget": cell.budget,
        "seed": cell.seed,
        "purpose": "search" if cell.seed == SEARCH_SEED else "result",
    }


def write(board: str, folder: Path, path: Path) -> list[dict[str, Any]]:
    """Write all finished cells to `path` as a JSON list in the order of `cells()`; returns them."""
    found = read(folder)
    ordered = [found[cell.name] for cell in cells(board) if cell.name in found]
    lines = ",\n".join(json.dumps(cell) for cell in ordered)
    write_text(path, f"[\n{lines}\n]\n")
    return ordered
