# SPDX-License-Identifier: MIT
"""Several runs in the same figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sparse_ext.report import plots
from sparse_ext.report.page import Page
from sparse_ext.report.runlog import RunLog, Series

# quantity -> (title, axis, scale, caption); one line per run
COMPARED = {
    "val_acc1": ("Online accuracy", "top-1 accuracy (%)", 1, "Linear classifier, while training."),
    "sparse/online_sparsity": (
        *("Sparsity of the online encoder", "zeros in the prunable set (%)", 100),
        "Measured from the masks at the end of each epoch.",
    ),
    "sparse/momentum_sparsity": (
        *("Sparsity of the momentum encoder", "zeros in the prunable set (%)", 100),
        "Measured from the masks at the end of each epoch.",
    ),
    "sparse/gap": (
        *("Gap between the encoders", "online minus momentum (points)", 100),
        "SyncCP keeps it constant, GraNet lets it grow (its Figure 2b).",
    ),
    "sparse/inconsistency": (
        *("Inconsistency", "I", 1),
        "Share of positions where the pseudo-masks at the final sparsities differ.",
    ),
    "sparse/oscillation": (
        *("Architecture oscillation", "share of weights", 1),
        "Positions where the mask before and after regrowth differ, at the last update (Eq. 7).",
    ),
    "sparse/mask_flips": (
        *("Mask changes", "share of positions (%)", 100),
        "Both encoders' masks, per epoch.",
    ),
    "sparse/macs_effective": (
        *("Effective MACs", "MACs per image (millions)", 1e-6),
        "Online encoder, modelled from the masks: kept weights only.",
    ),
    "gating/val_rho": (
        *("MACs of the gated encoder", "of the dense MACs (%)", 100),
        "Measured on the validation images; counted, not timed.",
    ),
    "gating/val_eta": (
        *("Conditional sparsity", "closed (%)", 100),
        "Share of the conditional paths' outputs, measured on the validation images.",
    ),
    "gating/mask_similarity": (
        *("Mask similarity", "cosine", 1),
        "Decisions for two views of an image, along the channels.",
    ),
    "sparse/training_cost_A": (
        *("Training cost so far, convention A", "over dense training", 1),
        "Modelled in MACs from the masks of every step.",
    ),
}


def comparison(page: Page, logs: Mapping[str, RunLog]) -> None:
    """Add a figure for every quantity that any of these runs (by label) logged."""
    for name, (title, axis, scale, caption) in COMPARED.items():
        found = {label: log.get(name) for label, log in logs.items()}
        series = {
            label: Series(s.epochs, [scale * value for value in s.values])
            for label, s in found.items()
            if s is not None
        }
        if series:
            page.figure(title, plots.lines(series, axis), caption)


def write_comparison(folders: Sequence[str | Path], output: str | Path) -> Path:
    """One page with several runs side by side.

    Raises:
        DataError: a folder holds no run.
    """
    logs = labelled([RunLog(folder) for folder in folders])
    page = Page("Runs compared", ", ".join(logs))
    comparison(page, logs)
    return page.write(output)


def labelled(logs: Sequence[RunLog]) -> dict[str, RunLog]:
    """Runs by name; by folder as well where names are equal."""
    names = [log.name for log in logs]
    return {
        name if names.count(name) == 1 else f"{name} ({log.folder})": log
        for name, log in zip(names, logs, strict=True)
    }
