# SPDX-License-Identifier: MIT
"""A gathered table as text, JSON, CSV and HTML; our figures beside the printed ones."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solo.files.whole import whole_file, write_json, write_text

if TYPE_CHECKING:
    from sparse_ext.report.page import Page

# key -> (two lines of heading, format, scale)
COLUMNS = {
    "acc": ("top-1", "(%)", "{:.2f}", 1),
    "paper_acc": ("paper", "top-1", "{:.2f}", 1),
    "flops_reduction": ("FLOPs", "saved*", "{:.2f}%", 100),
    "momentum_acc": ("momentum", "top-1 (%)", "{:.2f}", 1),
    "paper_momentum_acc": ("paper", "momentum", "{:.2f}", 1),
    "dense_acc": ("dense", "top-1 (%)", "{:.2f}", 1),
    "paper_dense_acc": ("paper", "dense", "{:.2f}", 1),
    "gated_acc": ("gated", "top-1 (%)", "{:.2f}", 1),
    "paper_gated_acc": ("paper", "gated", "{:.2f}", 1),
    "gated_flops_reduction": ("gated, FLOPs", "saved*", "{:.2f}%", 100),
    "paper_gated_flops_reduction": ("paper,", "saved", "{:.2f}%", 1),
    "gated_macs_effective": ("gated", "MACs*", "{:,.1f} M", 1e-6),
    "finetuned_acc": ("50% labels", "top-1 (%)", "{:.2f}", 1),
    "paper_finetuned_acc": ("paper,", "50% labels", "{:.2f}", 1),
    "finetuned_flops_reduction": ("50% labels,", "saved*", "{:.2f}%", 100),
    "times_fewer_macs": ("times fewer", "MACs*", "{:.2f}", 1),
    "times_fewer_macs_gated": ("in gated", "layers*", "{:.2f}", 1),
    "paper_times_fewer_macs_gated": ("paper", "(FLOPs)", "{:.2f}", 1),
    "finetuned_times_fewer_macs": ("50% labels,", "fewer MACs*", "{:.2f}", 1),
    "finetuned_times_fewer_macs_gated": ("in gated", "layers*", "{:.2f}", 1),
    "paper_finetuned_times_fewer_macs_gated": ("paper", "(FLOPs)", "{:.2f}", 1),
    "eta": ("cond. path", "sparsity*", "{:.1%}", 1),
    "paper_eta": ("paper,", "sparsity", "{:.1f}%", 1),
    "finetuned_eta": ("50% labels,", "sparsity*", "{:.1%}", 1),
    "paper_finetuned_eta": ("paper,", "sparsity", "{:.1f}%", 1),
    "sparsity_online": ("sparsity", "online", "{:.1%}", 1),
    "sparsity_online_whole_encoder": ("online,", "all weights", "{:.1%}", 1),
    "sparsity_momentum": ("sparsity", "momentum", "{:.1%}", 1),
    "macs_dense": ("MACs", "dense", "{:,.1f} M", 1e-6),
    "paper_macs_dense": ("paper,", "dense", "{:,.0f} M", 1e-6),
    "macs_effective": ("MACs", "effective*", "{:,.1f} M", 1e-6),
    "inference_cost": ("effective", "/ dense", "{:.3f}", 1),
    "paper_inference": ("paper", "/ dense", "{:.2f}", 1),
    "training_cost_A": ("training", "cost A*", "{:.3f}", 1),
    "training_cost_B": ("training", "cost B*", "{:.3f}", 1),
    "training_cost_C": ("training", "cost C*", "{:.3f}", 1),
    "paper_training": ("paper", "training", "{:.2f}", 1),
    "megabytes": ("memory", "(MB)", "{:.2f}", 1),
    "paper_megabytes": ("paper", "(MB)", "{:.1f}", 1),
    "runs": ("runs", "(seeds)", "{:d}", 1),
}
# by section of the configuration
NOTES = {
    "sparse": (
        "top-1: linear evaluation (table 8: fine-tuning or supervised), last epoch; one run, or "
        "mean ± sample deviation of several seeds. paper: mean of 3 runs.",
        "sparsity: zeros over the prunable set, and over all parameters of the encoder; measured "
        "from the checkpoint.",
        "* modelled in multiply-accumulates from the masks: per evaluation image, kept weights "
        "only; training, from every step's masks, over dense training by convention A (3 f_online "
        "+ f_momentum over 4), B (dense weight gradients), C (forward passes). No measured speed.",
        "memory: kept parameters as float32, without an index.",
    ),
    "gating": (
        "top-1: linear evaluation or fine-tuning, last epoch, or the nearest neighbour (k = 1), as "
        "the title says; one run, or mean ± sample deviation of several seeds.",
        "* 1 - MACs used / MACs of the dense network, per image, measured on the evaluation's "
        "validation images; counted, not timed: closed gates are simulated. Times fewer: dense "
        "MACs / MACs used, of the whole encoder, and of the gated layers alone (CDG, Eq. 13). "
        "Sparsity: share of the conditional paths' outputs that was not computed.",
    ),
}


def text(title: str, figures: Sequence[Mapping[str, Any]], notes: Sequence[str]) -> str:
    """For a terminal; `notes` stand below."""
    keys = _present(figures)
    heads = [["", "row"], *([COLUMNS[k][0], COLUMNS[k][1]] for k in keys)]
    lines = [[head[i] for head in heads] for i in (0, 1)]
    lines += [[str(row["row"]), *(_cell(row, key) for key in keys)] for row in figures]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    drawn = [
        "  ".join(
            c.rjust(w) if i else c.ljust(w)
            for i, (c, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    rule = "-" * len(drawn[1])
    return "\n".join([title, "", *drawn[:2], rule, *drawn[2:], rule, *_labels(figures), *notes])


def write(
    title: str, figures: Sequence[Mapping[str, Any]], folder: Path, notes: Sequence[str]
) -> dict[str, Path]:
    """Write `summary.txt`, `.json`, `.csv` and `.html` into `folder`; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {kind: folder / f"summary.{kind}" for kind in ("txt", "json", "csv", "html")}
    write_text(paths["txt"], text(title, figures, notes) + "\n")
    write_json(paths["json"], {"title": title, "notes": notes, "rows": figures})
    with whole_file(paths["csv"]) as partial, open(partial, "w", newline="") as file:
        columns = list(dict.fromkeys(key for row in figures for key in row))
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(figures)
    _page(title, figures, notes).write(paths["html"])
    return paths


def _page(title: str, figures: Sequence[Mapping[str, Any]], notes: Sequence[str]) -> Page:
    from sparse_ext.report import Page
    from sparse_ext.report.runlog import RunLog
    from sparse_ext.report.several_runs import comparison

    keys = _present(figures)
    page = Page(title, " ".join(_labels(figures)))
    heads = ["row", *(f"{COLUMNS[key][0]} {COLUMNS[key][1]}" for key in keys)]
    rows = [[str(row["row"]), *(_cell(row, key) for key in keys)] for row in figures]
    page.table("Runs beside the paper's figures", heads, rows, " ".join(notes))
    logs = {
        str(row["row"]): RunLog(Path(row["checkpoint"]).parent)
        for row in figures
        if "checkpoint" in row
    }
    if logs:
        page.heading("Training", "As logged in each run's metrics.csv.")
        comparison(page, logs)
    return page


def _present(figures: Sequence[Mapping[str, Any]]) -> list[str]:
    """Columns that any row fills."""
    return [key for key in COLUMNS if any(row.get(key) is not None for row in figures)]


def _cell(row: Mapping[str, Any], key: str) -> str:
    """A figure, with its deviation where there is one: `<figure>_std`."""
    if row.get(key) is None:
        return "–"
    _, _, form, scale = COLUMNS[key]
    shown = form.format(row[key] * scale)
    deviation = row.get(f"{key}_std")
    return shown if deviation is None else f"{shown} ±{form.format(deviation * scale)}"


def _labels(figures: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the rows have in common that the paper's runs have not, and notes."""
    labels: dict[str, list[str]] = {}
    for row in figures:
        for text_ in filter(None, (row.get("label"), row.get("note"))):
            labels.setdefault(text_, []).append(str(row["row"]))
    everyone = len(figures)
    return [
        f"{text_[0].upper()}{text_[1:]}."
        if len(names) == everyone
        else f"{', '.join(names)}: {text_.rstrip('.')}."
        for text_, names in labels.items()
    ]
