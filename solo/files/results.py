# SPDX-License-Identifier: MIT
"""`results.json` in a run's folder: what the run and the evaluations of its encoder have found.

`run` is about the run itself; `knn`, `linear` and `umap` are lists with one entry per evaluation of
its encoder, so that each setting stands there once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from solo.errors import DataError, OutputError
from solo.files.lock import one_at_a_time
from solo.files.whole import refusal, write_json

FILE = "results.json"
_LOCK = ".results.lock"


def read_results(folder: str | Path) -> dict[str, Any]:
    """What `results.json` in a run's folder holds; empty where there is none.

    Raises:
        DataError: the file is damaged.
    """
    path = Path(folder) / FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"'{path}' is damaged ({error}): delete it.") from None
    if not isinstance(found, dict):
        raise DataError(f"'{path}' is damaged (it holds no object): delete it.")
    return found


def keep_results(folder: str | Path, result: Mapping[str, Any]) -> Path:
    """Write what a run has found into its own folder; what was there of it before is updated.

    Args:
        folder: of the run.
        result: plain values by name.

    Raises:
        OutputError: the file cannot be written.
    """
    return _change(folder, lambda stored: {"run": {**stored.get("run", {}), **result}})


def add_evaluations(
    folder: str | Path, program: str, entries: Sequence[Mapping[str, Any]], figures: Sequence[str]
) -> Path:
    """Write what an evaluation has found into the folder of the run that it has evaluated.

    Args:
        folder: of the evaluated run.
        program: `knn`, `linear` or `umap`.
        entries: settings and figures of each evaluation; one that was there with the same settings
            is replaced.
        figures: the names in `entries` that are figures, no settings.

    Raises:
        OutputError: the file cannot be written.
    """

    def settings(entry: Mapping[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in entry.items() if k not in figures}

    def changed(stored: dict[str, Any]) -> dict[str, Any]:
        new = json.loads(json.dumps(list(entries), default=str))
        fresh = [settings(entry) for entry in new]
        old = [e for e in stored.get(program, []) if settings(e) not in fresh]
        return {program: [*old, *new]}

    return _change(folder, changed)


def _change(folder: str | Path, changed: Any) -> Path:
    """Read, change and write at once, so that two programs do not lose each other's results."""
    path = Path(folder) / FILE
    try:
        with one_at_a_time(folder, _LOCK):
            try:
                stored = read_results(folder)
            except DataError:  # of no use to anybody
                stored = {}
            return write_json(path, {**stored, **changed(stored)})
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"'{path}' cannot be written: {refusal(error)}") from error
