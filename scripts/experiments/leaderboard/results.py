# SPDX-License-Identifier: MIT
"""Finished cells: read from their folders, and written as one list."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scripts.experiments.leaderboard.cells import SEARCH_SEED, Cell, cells
from scripts.experiments.leaderboard.protocol import protocol, run_folder
from solo.errors import ConfigError, DataError, did_you_mean
from solo.files.whole import write_json, write_text


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


def take(board: str, path: Path, folder: Path) -> set[str]:
    """Take over finished cells from a list that `write` has made, perhaps on another machine.

    A cell that was trained with other values than the board has today is not taken, nor one whose
    recipe has changed since (older lists do not say the recipe; their values decide).

    Args:
        board: whose list it is.
        path: of the list.
        folder: of the leaderboard; a cell that has figures there keeps them.

    Returns:
        The names of the cells whose figures are the list's.

    Raises:
        DataError: the file cannot be read, or is no list of finished cells.
    """
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
        matches = [(c, one) for one in records for c in cells(board) if _is_of(one, c, board)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is no list of finished cells ({type(error).__name__}: {error}). "
            f"Give a file that this program has written, such as "
            f"benchmarks/results/{board}_leaderboard.json."
        ) from error
    taken = set()
    for cell, record in matches:
        file = run_folder(folder, cell) / "cell.json"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, record)
        if json.loads(file.read_text(encoding="utf-8")) == record:  # now, or by an earlier start
            taken.add(cell.name)
    return taken


def _is_of(record: dict[str, Any], cell: Cell, board: str) -> bool:
    """Whether that is a result of this cell, trained as the board trains it."""
    if any(record[key] != value for key, value in identity(cell).items()):
        return False
    setting = record["setting"]
    if cell.setting not in (None, setting):
        return False
    recipe = protocol(board).fingerprint(cell)
    if record.get("recipe", recipe) != recipe:
        return False
    return set(protocol(board).pretraining(cell, setting)) <= set(record["overrides"])
