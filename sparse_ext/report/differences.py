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


def differences(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Keys whose values differ, and the value of each run as text.

    A section that only some runs have (`sparse`, `gating`) differs as a whole; its own keys are
    compared among the runs that have it.

    Args:
        runs: configurations, as `args.json` has them.
    """
    flat = [dict(_flat(_relevant(run))) for run in runs]
    keys = dict.fromkeys(key for run in flat for key in run)
    found = {}
    for key in keys:
        section = key.split(".")[0]
        missing = "–"
        those = flat
        if section in SECTIONS and key != section:
            those = [run for run in flat if run.get(section) != SECTIONS[section]]
        if len({repr(run.get(key)) for run in those}) > 1:
            found[key] = [_text(run.get(key)) if key in run else missing for run in flat]
    return found


def _relevant(run: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in run.items() if key not in _IGNORED}
    named: dict[str, Any] = {}
    for section, absent in SECTIONS.items():
        value = kept.pop(section, None)
        if isinstance(value, str):
            value = {"name": value}
        named[section] = (value or {}).get("name", absent)
        named |= {f"{section}.{k}": v for k, v in (value or {}).items() if k != "name"}
    return {**named, **kept}


def _flat(node: Mapping[str, Any], path: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in node.items():
        if key in _DERIVED:
            continue
        if isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value):
            value = {str(i): item for i, item in enumerate(value)}
        if isinstance(value, Mapping) and value:
            found += _flat(value, f"{path}{key}.")
        else:
            found.append((f"{path}{key}", value))
    return found


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
