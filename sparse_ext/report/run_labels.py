# SPDX-License-Identifier: MIT
"""What runs on a common page are called, and the colour, line and dot of each."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from sparse_ext.report import plots
from sparse_ext.report.runlog import RunLog

_FORMS: tuple[tuple[Any, str], ...] = (("-", "o"), ((0, (5, 2)), "s"), ((0, (1.5, 1.5)), "^"))


def labelled(logs: Sequence[RunLog]) -> dict[str, RunLog]:
    """Runs by name; where names are equal, with the parts of their folders that differ.

    Where all names are equal, those parts alone.
    """
    names = [log.name for log in logs]
    labels = []
    for log, name in zip(logs, names, strict=True):
        same = [other.folder.resolve().parts for other in logs if other.name == name]
        part = _own_part(log.folder.resolve(), same)
        if len(same) == len(logs) > 1:
            labels.append(part)
        else:
            labels.append(f"{name} ({part})" if len(same) > 1 else name)
    return dict(zip(labels, logs, strict=True))


def _own_part(folder: Path, others: Sequence[tuple[str, ...]]) -> str:
    """`folder` without the first and the last parts that all of `others` have in common."""
    parts = folder.parts
    first = next((i for i, p in enumerate(zip(*others, strict=False)) if len(set(p)) > 1), 0)
    back = [tuple(reversed(other)) for other in others]
    last = next((i for i, p in enumerate(zip(*back, strict=False)) if len(set(p)) > 1), 0)
    return "/".join(parts[first : len(parts) - last]) or str(folder)


def styles(labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """matplotlib options of each run's line and dots; 18 runs differ, and more begin again."""
    looks = [
        {"color": colour, "linestyle": line, "marker": dot}
        for (line, dot), colour in product(_FORMS, plots.CYCLE)
    ]
    return {label: looks[i % len(looks)] for i, label in enumerate(labels)}
