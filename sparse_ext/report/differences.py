# SPDX-License-Identifier: MIT
"""In what the configurations of several runs differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# what a run is called, where it lies and what it prints says nothing about what it does
_IGNORED = (
    *("name", "checkpoint", "wandb", "wandb_run_id", "tensorboard", "auto_resume", "auto_umap"),
    *("resume_from_checkpoint", "enable_progress_bar", "enable_model_summary", "hydra", "imports"),
)
_DERIVED = ("lr_as_written", "classifier_lr_as_written")
#: sections that are there or not: their `name` stands for them
SECTIONS = {"sparse": "dense", "gating": "no gates"}
ABSENT = "–"
_LONGEST = 60  # letters of a value


def differences(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Keys whose values differ, and the value of each run as text.

    A section that only some runs have (`sparse`, a second entry of `augmentations`) differs as a
    whole; its own keys are compared among the runs that have it. Likewise keys below `sparse` and
    `gating` that only some methods have.

    Args:
        runs: configurations, as `args.json` has them.
    """
    nodes = [_relevant(run) for run in runs]
    found: dict[str, list[str]] = {}
    _compare(nodes, list(range(len(runs))), "", found, len(runs))
    return found


def _compare(
    nodes: Sequence[Any], rows: Sequence[int], path: str, found: dict[str, list[str]], runs: int
) -> None:
    """Add what differs between `nodes`, values at `path` of the runs with the numbers `rows`."""
    for key in dict.fromkeys(key for node in nodes for key in node):
        name = f"{path}{key}"
        those = [i for i, node in enumerate(nodes) if key in node]
        values, numbers = [nodes[i][key] for i in those], [rows[i] for i in those]
        inner = [_children(value) for value in values]
        missing = len(those) < len(nodes) and name.split(".")[0] not in SECTIONS
        if all(child is not None for child in inner):
            if missing:
                _add(found, name, runs, numbers, [_text(value) for value in values])
            _compare([c for c in inner if c is not None], numbers, f"{name}.", found, runs)
            continue
        if missing or len({repr(value) for value in values}) > 1:
            _add(found, name, runs, numbers, [_text(value) for value in values])


def _add(
    found: dict[str, list[str]], name: str, runs: int, numbers: Sequence[int], texts: Sequence[str]
) -> None:
    texts_by_run = dict(zip(numbers, texts, strict=True))
    found[name] = [texts_by_run.get(i, ABSENT) for i in range(runs)]


def _relevant(run: Mapping[str, Any]) -> dict[str, Any]:
    """What counts of a configuration; the name of a section beside its other keys."""
    kept = {key: value for key, value in run.items() if key not in _IGNORED}
    named: dict[str, Any] = {}
    for section, absent in SECTIONS.items():
        value = kept.pop(section, None)
        if isinstance(value, str):
            value = {"name": value}
        named[section] = (value or {}).get("name", absent)
        named |= {f"{section}.{k}": v for k, v in (value or {}).items() if k != "name"}
    return {**named, **kept}


def _children(value: Any) -> dict[str, Any] | None:
    """Keys and values below a section or a list of sections; None of a mere value."""
    if isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value):
        return {str(i): item for i, item in enumerate(value)}
    if not isinstance(value, Mapping) or not value:
        return None
    return {key: item for key, item in value.items() if key not in _DERIVED}


def _text(value: Any) -> str:
    """A value as one types it behind a command, shortened in the middle."""
    children = _children(value)
    if children is not None:
        text = f"{len(children)} {'key' if len(children) == 1 else 'keys'}"
    elif isinstance(value, (list, tuple)):
        text = f"[{','.join(map(_text, value))}]"
    elif value is None or isinstance(value, bool):
        text = str(value).lower().replace("none", "null")
    else:
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
    half = _LONGEST // 2
    return text if len(text) <= _LONGEST else f"{text[:half]}…{text[-half:]}"
