# SPDX-License-Identifier: MIT
"""The report of one run: facts, what its checkpoint costs, and every panel that applies."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solo.errors import SoloError
from sparse_ext.report import gating_panels
from sparse_ext.report.page import Page
from sparse_ext.report.panels import PANELS, is_pretraining
from sparse_ext.report.runlog import RunLog
from sparse_ext.report.timing import step_times

if TYPE_CHECKING:
    from sparse_ext.cost import CostTable


def write_report(
    folder: str | Path,
    output: str | Path | None = None,
    chosen: gating_panels.Chosen | None = None,
    umap: int | None = None,
) -> Path:
    """Write the report of the run in `folder`, by default to `report.html` in it.

    Args:
        folder: of the run.
        output: another file.
        chosen: images whose feature maps are drawn (gating=cgnet and gating=cdg).
        umap: embed the features of so many validation images; None leaves that out.

    Raises:
        DataError: no metrics there, or a damaged file; with `umap` also if there are no images.
        SoloError: feature maps are asked for and cannot be drawn.
    """
    log = RunLog(folder)
    page = Page(log.name, _lead(log))
    run_section(page, log)
    if umap is not None:
        from sparse_ext.report.embedding import embeddings

        embeddings(page, log, umap)
    if chosen is not None:
        gating_panels.feature_maps(page, log, chosen)
    return page.write(output or log.folder / "report.html")


def run_section(page: Page, log: RunLog) -> None:
    """Add everything that is known about a run to `page`."""
    facts = _facts(log)
    if facts:
        page.facts("Run", facts, f"Folder: {log.folder}")
    for panel in (*PANELS, *gating_panels.PANELS):
        panel(page, log)
    cost_cards(page, log)
    step_times(page, log)


def cost_cards(page: Page, log: RunLog) -> None:
    """Add size and cost of the run's last checkpoint, if it is there and can be rebuilt."""
    try:
        tables = checkpoint_costs(log)
        ratios = training_cost(log)
    except SoloError as error:  # a run's curves are worth a page even when its checkpoint is not
        page.facts("Cost", {"Not measured": str(error)})
        return
    columns = (
        *("encoder", "parameters", "kept", "sparsity, prunable set", "sparsity, whole encoder"),
        *("MACs dense", "MACs effective", "effective / dense"),
    )
    rows = [
        (
            name,
            f"{table.parameters:,}",
            f"{table.parameters_kept:,}",
            f"{100 * table.prunable.sparsity:.2f}%",
            f"{100 * table.sparsity:.2f}%",
            f"{table.macs_dense:,}",
            f"{round(table.macs_effective):,}",
            f"{table.mac_ratio:.3f}",
        )
        for name, table in tables.items()
    ]
    if not rows:
        return
    size = "x".join(map(str, next(iter(tables.values())).input_shape))
    text = (
        f"From the weights and masks of the last checkpoint; MACs (multiply-accumulates; FLOPs "
        f"are twice that) for one image of {size}. Effective MACs are modelled: they count kept "
        f"weights only. A dense kernel computes the dense figure, so no speed-up is claimed."
    )
    if gating_panels.branches(log):
        text += " What gates leave out is not in this table: see MACs of the gated encoder."
    page.table("Cost of the encoders", columns, rows, text)
    training_card(page, log, ratios)


def training_card(page: Page, log: RunLog, ratios: Mapping[str, float]) -> None:
    """Add the modelled training cost of a sparse run relative to a dense one."""
    if ratios:
        from sparse_ext.cost.conventions import CONVENTIONS, SHARED_CONVENTIONS

        meaning = CONVENTIONS if "sparse/momentum_sparsity" in log else SHARED_CONVENTIONS
        rows = [(key, f"{value:.3f}", meaning[key]) for key, value in ratios.items()]
        text = (
            "Modelled in MACs from the masks of every optimizer step of the run; f is a sparse "
            "forward pass over a dense one. Heads and augmentation are not counted."
        )
        page.table(
            "Training cost over dense training", ("convention", "ratio", "counts"), rows, text
        )


def checkpoint_costs(log: RunLog) -> dict[str, CostTable]:
    """Cost per encoder of the last checkpoint; empty without one.

    Raises:
        CheckpointError: the checkpoint and args.json do not fit together.
    """
    from solo.checkpoints.runs import open_run
    from solo.utils.checkpointer import last_checkpoint
    from sparse_ext.cost.of_checkpoint import measure

    if last_checkpoint(log.folder) is None or not log.args:
        return {}
    return {name: measure(log.folder, name) for name in open_run(log.folder).encoders}


def training_cost(log: RunLog) -> dict[str, float]:
    """Training cost over dense by convention, as the run added it up; empty for a dense run."""
    return {name: s.last for name, s in log.group("sparse/training_cost_").items()}


def _lead(log: RunLog) -> str:
    kind = "Self-supervised pretraining" if is_pretraining(log) else "Linear evaluation"
    if log.args.get("finetune"):
        kind = "Fine-tuning"
    data = (log.args.get("data") or {}).get("dataset")
    return f"{kind} on {data}." if data else f"{kind}."


def _facts(log: RunLog) -> dict[str, str]:
    args = log.args
    backbone, data, optimizer = (args.get(key) or {} for key in ("backbone", "data", "optimizer"))
    epochs = max((e for name in log.names if (s := log.get(name)) for e in s.epochs), default=0)
    kwargs = ", ".join(f"{k}={v}" for k, v in (backbone.get("kwargs") or {}).items())
    facts = {
        "Method": args.get("pretrain_method") or args.get("method"),
        "Encoder": " ".join(filter(None, (backbone.get("name"), kwargs))),
        "Data": data.get("dataset"),
        "Epochs finished": f"{epochs:g} of {args['max_epochs']}" if "max_epochs" in args else None,
        "Optimizer": optimizer.get("name"),
        "Learning rate in effect": _short(optimizer.get("lr")),
        "Batch": _short(optimizer.get("batch_size")),
        "Seed": _short(args.get("seed")),
        "Sparsity": _sparsity(args.get("sparse")),
        "Gates": _gates(args.get("gating")),
        "Evaluated encoder": args.get("eval_encoder"),
    }
    return {name: value for name, value in facts.items() if value}


def _short(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _sparsity(section: Any) -> str:
    if not section:
        return "dense"
    from sparse_ext.config.sections import build

    config = build(section)
    first, last = config.momentum
    return (
        f"{config.name}: online {100 * config.initial:g}% to {100 * config.final:g}%, "
        f"momentum {100 * first:g}% to {100 * last:g}%"
    )


def _gates(section: Any) -> str:
    """The gating method and every setting that is not its default."""
    if not section or "name" not in section:
        return ""
    from sparse_ext.gating.config.sections import METHODS

    usual = METHODS[section["name"]]()
    own = {k: v for k, v in section.items() if v != getattr(usual, k, v)}
    return ", ".join([section["name"], *(f"{key}={value}" for key, value in own.items())])
