# SPDX-License-Identifier: MIT
"""Several runs on one page: what differs, what came of it, what it costs, and their curves."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from solo.monitoring.console import short, waiting
from sparse_ext.report import plots, verdict
from sparse_ext.report.differences import differences
from sparse_ext.report.gating_panels import macs_share
from sparse_ext.report.measured import Measured, measure_run
from sparse_ext.report.page import Page
from sparse_ext.report.runlog import RunLog, Series

FILE = "comparison.html"
KEYS = 4  # of the configuration that the table of runs has columns for
FIRST = ("method", "sparse", "sparse.final", "gating", "backbone", "seed", "optimizer", "data")
FIGURES = ("accuracy", "kNN", "sparsity", "MACs", "MB", "ms per image", "seconds")
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


def page_for(folders: Sequence[str | Path]) -> Path:
    """Where the page about these runs goes by default: into the folder that holds them all."""
    shared = os.path.commonpath([Path(folder).resolve() for folder in folders])
    return Path(shared) / FILE


def write_comparison(folders: Sequence[str | Path], output: str | Path, timed: bool = True) -> Path:
    """One page with several runs side by side: a table, what accuracy costs, curves.

    Args:
        folders: of the runs.
        output: the page.
        timed: measure each encoder's milliseconds on this machine.

    Raises:
        DataError: a folder holds no run.
    """
    logs = labelled([RunLog(folder) for folder in folders])
    page = Page("Runs compared", f"{len(logs)} runs.")
    compared = look(logs, timed)
    runs_table(page, compared, Path(output).parent)
    trade_offs(page, compared)
    comparison(page, logs)
    all_differences(page, compared)
    return page.write(output)


@dataclass(frozen=True)
class Compared:
    """A run among others.

    Attributes:
        log: what it wrote.
        measured: its last checkpoint.
        milliseconds: per image on this machine; None: not timed.
    """

    log: RunLog
    measured: Measured
    milliseconds: float | None = None

    @property
    def accuracy(self) -> float | None:
        """Top-1 accuracy in per cent, by the best protocol that was run."""
        found = verdict.best_accuracy(self.log)
        return None if found is None else found[0]

    @property
    def macs(self) -> float | None:
        """MACs per image of the online encoder."""
        return verdict.macs_used(self.log, self.measured)

    @property
    def megabytes(self) -> float | None:
        """Of the online encoder in sparse storage."""
        sizes = list(self.measured.sizes.values())
        return None if not sizes else (sizes[0].total if sizes[0].index else sizes[0].dense) / 1e6


def look(logs: Mapping[str, RunLog], timed: bool) -> dict[str, Compared]:
    """Open the last checkpoint of every run, and time its encoder."""
    from sparse_ext.report.timed import milliseconds

    measured = {label: measure_run(log) for label, log in logs.items()}
    encoders = {
        label: (m.encoders["online"], m.tables["online"].input_shape[-1])
        for label, m in measured.items()
        if m.encoders
    }
    times: dict[str, float] = {}
    if timed and encoders:
        with waiting("timing the encoders"):
            times = milliseconds(encoders)
    return {label: Compared(log, measured[label], times.get(label)) for label, log in logs.items()}


def runs_table(page: Page, runs: Mapping[str, Compared], folder: Path) -> None:
    """Add the table: what differs in the configurations, and what came of it."""
    changed = differences([run.log.args for run in runs.values()])
    shown = sorted(changed, key=_rank)[:KEYS]
    columns = ["run", *FIGURES, *shown]
    rows = [
        [label, *_cells(run), *(changed[key][i] for key in shown)]
        for i, (label, run) in enumerate(runs.items())
    ]
    protocols = {f[1] for run in runs.values() if (f := verdict.best_accuracy(run.log))}
    text = (
        "A click on a head sorts. Accuracy in %"
        + (f" ({'; '.join(sorted(protocols))})" if protocols else "")
        + ". Sparsity of the online encoder, zeros in its prunable set. MACs per image at the "
        "training size, counted. MB of kept weights and their index, float32. Seconds of training."
    )
    links = [_report(run.log.folder, folder) for run in runs.values()]
    page.table("Runs", columns, rows, text, sortable=True, links=links)


def all_differences(page: Page, runs: Mapping[str, Compared]) -> None:
    """Add every key whose values differ, where the table of runs has no room for all."""
    changed = differences([run.log.args for run in runs.values()])
    if len(changed) > KEYS:
        rows = [[key, *values] for key, values in changed.items()]
        text = "All keys of the configurations that differ."
        page.table("What differs", ["key", *runs], rows, text)


def _rank(key: str) -> int:
    """What a reader wants to see first of a configuration."""
    places = [i for i, first in enumerate(FIRST) if key == first or key.startswith(f"{first}.")]
    return max(places, default=len(FIRST))


def _report(run: Path, folder: Path) -> str:
    """Address of a run's own report, or of its folder, from a page in `folder`."""
    target = run / "report.html"
    target = target if target.is_file() else run
    return quote(os.path.relpath(target.resolve(), folder.resolve()))


def _cells(run: Compared) -> list[str]:
    knn, shares = verdict.best_knn(run.log), verdict.shares_pruned(run.log, run.measured)
    gated = macs_share(run.log) is not None and not any(shares.values())
    share = next(iter(shares.values()), None)
    seconds = run.log.results.get("run", {}).get("seconds")
    cells = [
        None if run.accuracy is None else f"{run.accuracy:.2f}",
        None if knn is None else f"{knn[0]:.2f}",
        "gated"
        if gated
        else None
        if share is None
        else f"{100 * share:.1f}%"
        if share
        else "dense",
        None if run.macs is None else short(run.macs),
        None if run.megabytes is None else f"{run.megabytes:.3g}",
        None if run.milliseconds is None else f"{run.milliseconds:.3g}",
        None if seconds is None else f"{seconds:,.0f}",
    ]
    return ["–" if cell is None else cell for cell in cells]


def _share(share: float) -> str:
    return f"{100 * share:.1f}%" if share else "dense"


def trade_offs(page: Page, runs: Mapping[str, Compared]) -> None:
    """Add accuracy against what it costs: MACs, bytes, milliseconds."""
    import torch

    from sparse_ext.report.timed import processor

    machine = (
        f"Measured while this page was written: one thread of {processor()}, float32, batch 16, "
        f"torch {torch.__version__}; encoders with masks by the element-wise kernel where it can "
        "be built and pays, dense convolutions elsewhere."
    )
    costs: tuple[tuple[str, float, str, str], ...] = (
        ("macs", 1e-6, "MACs per image (millions)", "Counted: kept weights, or open gates."),
        ("megabytes", 1.0, "encoder (MB)", "Kept weights and their index, float32."),
        ("milliseconds", 1.0, "milliseconds per image", machine),
    )
    for name, scale, label, text in costs:
        points = {
            label_: (scale * cost, run.accuracy)
            for label_, run in runs.items()
            if (cost := getattr(run, name)) is not None and run.accuracy is not None
        }
        if len(points) > 1:
            figure = plots.pareto(points, label, "top-1 accuracy (%)")
            more = " Dashed: runs that no other one beats in both."
            page.figure(f"Accuracy against {label}", figure, text + more)


def labelled(logs: Sequence[RunLog]) -> dict[str, RunLog]:
    """Runs by name; where names are equal, with the parts of their folders that differ."""
    names = [log.name for log in logs]
    labels = []
    for log, name in zip(logs, names, strict=True):
        same = [other.folder.resolve().parts for other in logs if other.name == name]
        labels.append(
            f"{name} ({_own_part(log.folder.resolve(), same)})" if len(same) > 1 else name
        )
    return dict(zip(labels, logs, strict=True))


def _own_part(folder: Path, others: Sequence[tuple[str, ...]]) -> str:
    """`folder` without the first and the last parts that all of `others` have in common."""
    parts = folder.parts
    first = next((i for i, p in enumerate(zip(*others, strict=False)) if len(set(p)) > 1), 0)
    back = [tuple(reversed(other)) for other in others]
    last = next((i for i, p in enumerate(zip(*back, strict=False)) if len(set(p)) > 1), 0)
    return "/".join(parts[first : len(parts) - last]) or str(folder)
