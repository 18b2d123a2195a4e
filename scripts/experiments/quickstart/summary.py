# SPDX-License-Identifier: MIT
"""What came out: one flat dictionary of figures, a table of them, and the report."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.experiments.jobs import Job
from scripts.experiments.quickstart import plan
from solo.errors import DataError
from solo.files.whole import write_json

if TYPE_CHECKING:
    from sparse_ext.report.page import Page

ROWS = {"raw": "raw pixels", "random": "random encoder", "dense": "dense", "sparse": "sparse"}
COLUMNS = {
    "linear_acc1": ("linear top-1 (%)", "{:.1f}"),
    "knn_acc1": ("kNN top-1 (%)", "{:.1f}"),
    "sparsity_online": ("sparsity", "{:.1%}"),
    "macs_dense": ("MACs dense", "{:,.0f}"),
    "macs_effective": ("MACs effective*", "{:,.0f}"),
    "checkpoint_bytes": ("checkpoint (MB)", "{:.1f}"),
    "encoder_bytes": ("encoder file (MB)", "{:.2f}"),
    "pretrain_seconds": ("pretraining (s)", "{:.0f}"),
}
ABOUT = {
    "*.linear_acc1": "percent; main_linear.py on the frozen encoder, 360 held-out "
    "originals in two renderings each, last epoch, one seed",
    "*.knn_acc1": "percent; main_knn.py on backbone features, cosine, "
    f"k={plan.KNN[1]}, T={plan.KNN[5]}",
    "*.sparsity_online": "zeros over the prunable set (every convolution but the stem), measured "
    "from the loaded checkpoint",
    "*.macs_dense": "multiply-accumulates per 24x24 image with every weight; FLOPs are twice that",
    "*.macs_effective": "multiply-accumulates of kept weights only, modelled from the masks; a "
    "dense kernel does not skip zeros, so this is no measured speed",
    "*.checkpoint_bytes": "file of main_pretrain.py: encoder, heads, optimizer, masks",
    "*.encoder_bytes": "encoder alone; sparse: kept values and one bit per weight",
    "*.pretrain_seconds": "wall time, dense and sparse side by side on the same machine",
    "sparse.training_cost_*": "modelled training MACs over those of the dense run, by convention "
    "A, B, C of sparse_ext.cost.conventions",
    "checks.*": "linear_acc1: margins in points over raw pixels and random encoder, dense - sparse",
}
MARGIN, NEAR = 40.0, 3.0  # points


def collect(settings: plan.Settings, jobs: list[Job], seconds: float) -> dict[str, Any]:
    """All figures by dotted key.

    Raises:
        DataError: a job left no result.
    """
    logs = settings.folder / "logs"
    figures: dict[str, Any] = {}
    for name in ROWS:
        log = "baselines" if name == "raw" else f"knn-{name}"
        figures[f"{name}.linear_acc1"] = _linear_acc1(settings, name)
        figures[f"{name}.knn_acc1"] = _knn_acc1(logs / f"{log}.log")
    for name in plan.ENCODERS:
        path = plan.checkpoint(settings, name)
        figures |= {
            f"{name}.{key}": value for key, value in _measured(settings, name, path).items()
        }
    for job in jobs:
        kind, _, name = job.name.partition("-")
        figures[f"{name or kind}.{kind if name else 'total'}_seconds"] = round(job.seconds or 0, 1)
    figures |= {f"sparse.training_cost_{k}": v for k, v in _training_cost(settings).items()}
    figures |= _checks(figures)
    figures["total_seconds"] = round(seconds, 1)
    figures["reused"] = [job.name for job in jobs if job.reused]
    return figures | {f"about.{key}": text for key, text in ABOUT.items()}


def table(figures: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Column heads and rows, as text."""
    rows = [
        [title, *(_cell(figures.get(f"{name}.{key}"), key) for key in COLUMNS)]
        for name, title in ROWS.items()
    ]
    return ["", *(head for head, _ in COLUMNS.values())], rows


def text(figures: Mapping[str, Any]) -> str:
    """The table for a terminal."""
    heads, rows = table(figures)
    split = [head.rsplit(" ", 1) if " " in head else ["", head] for head in heads]
    lines = [[part[0] for part in split], [part[1] for part in split], *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    drawn = [
        "  ".join(
            c.ljust(w) if i == 0 else c.rjust(w)
            for i, (c, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    rule = "-" * max(map(len, drawn))
    return "\n".join(
        [*drawn[:2], rule, *drawn[2:], rule, "* modelled: kept weights only, per 24x24 image"]
    )


def verdict(figures: Mapping[str, Any]) -> list[str]:
    """Sentences about what should hold."""
    sentences = []
    for name in plan.PRETRAINED:
        margin = figures[f"checks.{name}_over_baselines"]
        fine = margin >= MARGIN
        sentences.append(
            f"{'ok' if fine else 'WARNING'}: {name} is {margin:.1f} points above the better "
            f"baseline (expected: at least {MARGIN:.0f})"
        )
    behind = figures["checks.dense_minus_sparse"]
    fine = behind <= NEAR
    sentences.append(
        f"{'ok' if fine else 'WARNING'}: sparse is {abs(behind):.1f} points "
        f"{'below' if behind > 0 else 'above'} dense (expected: at most {NEAR:.0f} below)"
    )
    return sentences


def write(settings: plan.Settings, figures: Mapping[str, Any]) -> tuple[Path, Path]:
    """Write `report.html` and `summary.json`; returns both paths."""
    path = settings.folder / "summary.json"
    write_json(path, figures)
    return _page(settings, figures).write(settings.folder / "report.html"), path


def _page(settings: plan.Settings, figures: Mapping[str, Any]) -> Page:
    from sparse_ext.report import Page, RunLog, plots, run_section
    from sparse_ext.report.one_run import lead

    page = Page(
        "Quickstart: a sparse encoder learns without labels",
        "Handwritten digits on coloured backgrounds. Two encoders are pretrained without labels, "
        "one dense and one that becomes sparse while it trains (SyncCP); then each is frozen and "
        "evaluated. "
        f"Of 100 held-out digits the dense encoder gets {figures['dense.linear_acc1']:.1f} right, "
        f"the sparse one, {figures['sparse.sparsity_online']:.0%} of whose weights are zero, "
        f"{figures['sparse.linear_acc1']:.1f}; raw pixels {figures['raw.linear_acc1']:.1f}. "
        + " ".join(s + "." for s in verdict(figures)),
    )
    note = " ".join(
        f"{COLUMNS[name][0].rstrip('*')}: {text}."
        for key, text in ABOUT.items()
        if (name := key.removeprefix("*.")) in COLUMNS
    )
    page.table("Results", *table(figures), caption=note, strong=len(ROWS) - 1)
    colours = ["#cbd5e1", "#94a3b8", plots.GREY, plots.ONLINE]
    for key, title in (("linear_acc1", "Linear evaluation"), ("knn_acc1", "kNN evaluation")):
        values = {title: figures[f"{name}.{key}"] for name, title in ROWS.items()}
        figure = plots.bars(values, "top-1 accuracy (%)", colours)
        page.figure(title, figure, ABOUT[f"*.{key}"] + ".")
    logs = {name: RunLog(plan.checkpoint(settings, name).parent) for name in ("sparse", "dense")}
    for name, heading in (("sparse", "Sparse run"), ("dense", "Dense run")):
        page.heading(heading, lead(logs[name]))
        run_section(page, logs[name], logs["dense"] if name == "sparse" else None)
    page.heading("Linear evaluation of the sparse encoder")
    run_section(page, RunLog(plan.linear_run(settings, "sparse")), neighbours=0)
    return page


def _linear_acc1(settings: plan.Settings, name: str) -> float:
    from sparse_ext.report import RunLog

    return round(RunLog(plan.linear_run(settings, name)).series("val_acc1").last, 3)


def _knn_acc1(log: Path) -> float:
    found = re.findall(r"^Result: acc@1=([\d.]+)", log.read_text(encoding="utf-8"), re.MULTILINE)
    if not found:
        raise DataError(f"{log}: no result of kNN in it. Start again with --fresh.")
    return round(float(found[-1]), 3)


def _measured(settings: plan.Settings, name: str, path: Path) -> dict[str, Any]:
    """Sparsity and cost of a checkpoint, and the size of its encoder as a file of its own."""
    from solo.checkpoints import load_run
    from solo.checkpoints.exporting import export_encoder
    from solo.data.shown import input_size
    from sparse_ext.cost import count
    from sparse_ext.export import save_packed

    backbone, args = load_run(path)
    cost = count(backbone, input_size(args))
    file = settings.folder / f"encoder-{name}.safetensors"
    if args.get("sparse"):
        save_packed(backbone.state_dict(), file)
    else:
        export_encoder(backbone, file)
    return {
        "sparsity_online": cost.prunable.sparsity,
        "sparsity_online_whole_encoder": cost.sparsity,
        "parameters": cost.parameters,
        "parameters_kept": cost.parameters_kept,
        "macs_dense": cost.macs_dense,
        "macs_effective": round(cost.macs_effective),
        "flops_dense": cost.flops_dense,
        "checkpoint_bytes": path.stat().st_size,
        "encoder_bytes": file.stat().st_size,
    }


def _training_cost(settings: plan.Settings) -> dict[str, float]:
    from sparse_ext.report import RunLog
    from sparse_ext.report.one_run import training_cost

    log = RunLog(plan.checkpoint(settings, "sparse").parent)
    return {key: round(ratio, 4) for key, ratio in training_cost(log).items()}


def _checks(figures: Mapping[str, Any]) -> dict[str, float]:
    baseline = max(figures["raw.linear_acc1"], figures["random.linear_acc1"])
    dense, sparse = figures["dense.linear_acc1"], figures["sparse.linear_acc1"]
    return {
        "checks.dense_over_baselines": round(dense - baseline, 3),
        "checks.sparse_over_baselines": round(sparse - baseline, 3),
        "checks.dense_minus_sparse": round(dense - sparse, 3),
    }


def _cell(value: Any, key: str) -> str:
    if value is None:
        return "–"
    scale = 1e-6 if key.endswith("_bytes") else 1
    return COLUMNS[key][1].format(value * scale)
