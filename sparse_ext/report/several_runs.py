# SPDX-License-Identifier: MIT
"""Several runs on one page: what differs, what came of it, what it costs, and their curves."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from solo.monitoring.console import short, waiting
from sparse_ext.report import plots, verdict
from sparse_ext.report.differences import differences
from sparse_ext.report.gating_panels import macs_share
from sparse_ext.report.measured import Measured, measure_run
from sparse_ext.report.page import Page
from sparse_ext.report.run_labels import labelled, styles
from sparse_ext.report.runlog import RunLog, Series
from sparse_ext.report.trade_off import pareto

FILE = "comparison.html"
KEYS = 3  # of the configuration that the table of runs has columns for
FIRST = ("method", "sparse", "sparse.final", "gating", "backbone.name", "seed", "sparse.*")
LEGEND = 4  # runs up to which every figure has a legend of its own; more share one
FIGURES = ("accuracy", "kNN", "sparsity", "MACs", "MB", "ms/image", "seconds")
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
    """Add a figure for every quantity that any of these runs (by label) logged more than once."""
    looks = styles(list(logs))
    shared = len(logs) > LEGEND
    if shared:
        page.key(looks)
    for name, (title, axis, scale, caption) in COMPARED.items():
        found = {label: log.get(name) for label, log in logs.items()}
        series = {
            label: Series(s.epochs, [scale * value for value in s.values])
            for label, s in found.items()
            if s is not None
        }
        if any(len(s.epochs) > 1 for s in series.values()):
            figure = plots.lines(series, axis, looks, legend=not shared)
            page.figure(title, figure, caption)


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
    page = Page("Runs compared", _lead(list(logs.values())))
    compared = look(logs, timed)
    page.verdict(_best(compared))
    runs_table(page, compared, Path(output).parent)
    trade_offs(page, compared)
    page.heading("Curves")
    comparison(page, logs)
    all_differences(page, compared)
    return page.write(output)


def _lead(logs: Sequence[RunLog]) -> str:
    """How many runs of what on which images, as far as all agree."""
    said = [f"{len(logs)} runs"]
    for word, key in (("of", "method"), ("on", "data.dataset")):
        values = {str(_value(log.args, key)) for log in logs}
        said += [f"{word} {values.pop()}"] if len(values) == 1 and "None" not in values else []
    return " ".join(said) + "."


def _value(args: Any, key: str) -> Any:
    """What a configuration has at a dotted key; None where there is nothing."""
    for part in key.split("."):
        args = args.get(part) if isinstance(args, Mapping) else None
    return args


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
    def protocol(self) -> str:
        """How that accuracy was measured: `linear evaluation`, `online classifier`, ..."""
        found = verdict.best_accuracy(self.log)
        return "" if found is None else found[1].split(",")[0].split(":")[0]

    @property
    def macs(self) -> float | None:
        """MACs per image of the online encoder."""
        return verdict.macs_used(self.log, self.measured)

    @property
    def seconds(self) -> float | None:
        """Seconds of training, where `results.json` has them."""
        return self.log.results.get("run", {}).get("seconds")

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


def _best(runs: Mapping[str, Compared]) -> list[tuple[str, str, str]]:
    """The run that is first in each figure; accuracies count by the protocol of most runs."""
    usual, mixed = _usual_protocol(runs), len({run.protocol for run in runs.values()} - {""}) > 1
    figures: tuple[tuple[str, Callable[[Compared], float | None], str, int], ...] = (
        ("Best accuracy", lambda r: r.accuracy if r.protocol == usual else None, "{:.2f}%", 1),
        ("Fewest MACs", lambda r: r.macs, "{}", -1),
        ("Smallest", lambda r: r.megabytes, "{:.3g} MB", -1),
        ("Fastest", lambda r: r.milliseconds, "{:.3g} ms", -1),
    )
    found = []
    for name, figure, text, sign in figures:
        known = {label: value for label, run in runs.items() if (value := figure(run)) is not None}
        if len(set(known.values())) > 1:
            label = max(known, key=lambda label: sign * known[label])
            best = known[label]
            told = short(best) if text == "{}" else text.format(best)
            by = f", by the {usual}" if mixed and sign > 0 else ""
            found.append((name, told, f"{label}{by}"))
    return found


def _usual_protocol(runs: Mapping[str, Compared]) -> str:
    """By which most accuracies were measured."""
    protocols = [run.protocol for run in runs.values() if run.protocol]
    return max(protocols, key=protocols.count, default="")


def runs_table(page: Page, runs: Mapping[str, Compared], folder: Path) -> None:
    """Add the table: what came of each run, and what differs most in the configurations."""
    changed = differences([run.log.args for run in runs.values()])
    shown = sorted(changed, key=_rank)[:KEYS]
    protocols = sorted({run.protocol for run in runs.values() if run.protocol})
    mixed = ["by"] if len(protocols) > 1 else []
    columns = ["run", FIGURES[0], *mixed, *FIGURES[1:], *shown]
    rows = [
        [label, *_cells(run, bool(mixed)), *(changed[key][i] for key in shown)]
        for i, (label, run) in enumerate(runs.items())
    ]
    known = [i for i in range(len(columns)) if any(row[i] != "–" for row in rows)]
    columns, rows = [columns[i] for i in known], [[row[i] for i in known] for row in rows]
    text = (
        "A click on a head sorts. Accuracy in %"
        + (f", by the {protocols[0]}" if len(protocols) == 1 else "")
        + (". Accuracies of two protocols say nothing about each other" if mixed else "")
        + ". Sparsity of the online encoder, zeros in its prunable set. MACs per image at the "
        "training size, counted. MB of kept weights and their index, float32. Seconds of training."
    )
    links = [_report(run.log.folder, folder) for run in runs.values()]
    keys = styles(list(runs)) if len(runs) > LEGEND else {}
    page.table(
        *("Runs", columns, rows, text),
        sortable=True,
        links=links,
        keys=list(keys.values()),
        extra=len(shown),
    )


def all_differences(page: Page, runs: Mapping[str, Compared]) -> None:
    """Add every key whose values differ."""
    changed = differences([run.log.args for run in runs.values()])
    if changed:
        page.heading("What differs")
        rows = [[key, *changed[key]] for key in sorted(changed, key=_rank)]
        text = "All keys of the configurations that differ; – where a run has no such key."
        page.table("Configuration", ["key", *runs], rows, text, text=True)


def _rank(key: str) -> int:
    """What a reader wants to see first of a configuration."""
    if key in FIRST:
        return FIRST.index(key)
    section = f"{key.split('.')[0]}.*"
    return FIRST.index(section) if section in FIRST else len(FIRST)


def _report(run: Path, folder: Path) -> str:
    """Address of a run's own report, or of its folder, from a page in `folder`."""
    target = run / "report.html"
    target = target if target.is_file() else run
    return quote(os.path.relpath(target.resolve(), folder.resolve()))


def _cells(run: Compared, mixed: bool) -> list[str]:
    knn, shares = verdict.best_knn(run.log), verdict.shares_pruned(run.log, run.measured)
    gated = macs_share(run.log) is not None and not any(shares.values())
    share = next(iter(shares.values()), None)
    cells = [
        None if run.accuracy is None else f"{run.accuracy:.2f}",
        *([run.protocol.removesuffix(" evaluation").removesuffix(" classifier")] if mixed else []),
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
        None if run.seconds is None else f"{run.seconds:,.0f}",
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
        ("seconds", 1 / 60, "minutes of training", "As the runs' results.json has them."),
    )
    looks, shared, usual = styles(list(runs)), len(runs) > LEGEND, _usual_protocol(runs)
    hollow = {label for label, run in runs.items() if run.protocol != usual}
    for name, scale, label, text in costs:
        points = {
            label_: (scale * cost, run.accuracy)
            for label_, run in runs.items()
            if (cost := getattr(run, name)) is not None and run.accuracy is not None
        }
        if len(points) > 1:
            figure = pareto(points, label, "top-1 accuracy (%)", looks, hollow, not shared)
            more = " Dashed: runs that no other one beats in both."
            if hollow & set(points):
                more += f" Hollow: another protocol than the {usual}, not to be compared."
            page.figure(f"Accuracy against {label}", figure, text + more)
