# SPDX-License-Identifier: MIT
"""The report of one run: facts, what its checkpoint costs, and every panel that applies."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solo.errors import DataError
from sparse_ext.report import gating_panels, verdict
from sparse_ext.report.mask_pictures import mask_pictures
from sparse_ext.report.measured import Measured, measure_run
from sparse_ext.report.neighbours import neighbours as nearest_neighbours
from sparse_ext.report.page import Page
from sparse_ext.report.panels import DETAILS, LEARNING, MASKS
from sparse_ext.report.runlog import RunLog
from sparse_ext.report.timing import step_times

if TYPE_CHECKING:
    from sparse_ext.cost import CostTable

NEIGHBOURS = 500  # validation images among which nearest neighbours are looked for


def write_report(
    folder: str | Path,
    output: str | Path | None = None,
    chosen: gating_panels.Chosen | None = None,
    umap: int | None = None,
    dense: str | Path | None = None,
    neighbours: int = NEIGHBOURS,
) -> Path:
    """Write the report of the run in `folder`, by default to `report.html` in it.

    Args:
        folder: of the run.
        output: another file.
        chosen: images whose feature maps are drawn (gating=cgnet and gating=cdg).
        umap: embed the features of so many validation images; None leaves that out.
        dense: folder of the dense run that stands in the same figures; None looks for one with the
            same configuration beside `folder`.
        neighbours: among so many validation images nearest neighbours are shown; 0 leaves them out.

    Raises:
        DataError: no metrics there, or a damaged file; with `umap` also if there are no images.
        SoloError: feature maps are asked for and cannot be drawn.
    """
    log = RunLog(folder)
    page = Page(log.name, lead(log))
    run_section(page, log, None if dense is None else RunLog(dense), neighbours)
    if umap is not None:
        from sparse_ext.report.embedding import embeddings

        embeddings(page, log, umap)
    if chosen is not None:
        gating_panels.feature_maps(page, log, chosen)
    return page.write(output or log.folder / "report.html")


def run_section(
    page: Page, log: RunLog, dense: RunLog | None = None, neighbours: int = NEIGHBOURS
) -> None:
    """Add everything that is known about a run to `page`, what matters most first.

    Args:
        page: to add to.
        log: the run.
        dense: its dense twin; None looks for it beside the run.
        neighbours: see `write_report`.
    """
    measured = measure_run(log)
    dense = find_twin(log) if dense is None else dense
    page.verdict(verdict.figures(log, measured))
    for learning in LEARNING:
        learning(page, log, dense)
    for panel in (*MASKS, *gating_panels.PANELS):
        panel(page, log)
    mask_pictures(page, measured)
    nearest_neighbours(page, log, measured, neighbours)
    for panel in DETAILS:
        panel(page, log)
    cost_cards(page, log, measured)
    step_times(page, log)
    facts = _facts(log, measured)
    if facts:
        page.facts("Configuration", facts, f"Folder: {log.folder}")


def cost_cards(page: Page, log: RunLog, measured: Measured) -> None:
    """Add size and cost of the run's last checkpoint, if it is there and can be rebuilt."""
    if measured.obstacle:
        page.facts("Cost", {"Not measured": measured.obstacle})
        return
    gates = gating_panels.macs_share(log)
    columns = (
        *("encoder", "parameters", "kept", "sparsity, prunable set", "sparsity, whole encoder"),
        *("MACs dense", "MACs used" if gates is not None else "MACs effective", "used / dense"),
    )
    rows = []
    for name, table in measured.tables.items():
        share = table.mac_ratio if gates is None else gates
        rows.append(
            (
                name,
                f"{table.parameters:,}",
                f"{table.parameters_kept:,}",
                f"{100 * table.prunable.sparsity:.2f}%",
                f"{100 * table.sparsity:.2f}%",
                f"{table.macs_dense:,}",
                f"{round(share * table.macs_dense):,}",
                f"{share:.3f}",
            )
        )
    if not rows:
        return
    size = "x".join(map(str, next(iter(measured.tables.values())).input_shape))
    text = (
        f"From the weights and masks of the last checkpoint; MACs (multiply-accumulates; FLOPs "
        f"are twice that) for one image of {size}, the size that the run's images have. "
    )
    if gates is None:
        text += (
            "Effective MACs are modelled: they count kept weights only. A dense kernel computes "
            "the dense figure, so no speed-up is claimed."
        )
    else:
        text += (
            "Used: the mean over images of what the open gates let through, as the run logged it "
            "last; counted, not timed."
        )
    page.table("Cost of the encoders", columns, rows, text)
    training_card(page, log, training_cost(log))


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
    """Cost per encoder of the last checkpoint; empty without one."""
    return measure_run(log).tables


def training_cost(log: RunLog) -> dict[str, float]:
    """Training cost over dense by convention, as the run added it up; empty for a dense run."""
    return {name: s.last for name, s in log.group("sparse/training_cost_").items()}


def find_twin(log: RunLog) -> RunLog | None:
    """The newest dense run beside `log`'s folder whose configuration is the same in all else."""
    if not log.args.get("sparse") and not log.args.get("gating"):
        return None
    wanted = _comparable(log.args)
    folders = sorted(log.folder.resolve().parent.glob("*/metrics.csv"), reverse=True)
    for path in folders:
        with suppress(DataError):
            other = RunLog(path.parent)
            plain = not other.args.get("sparse") and not other.args.get("gating")
            if plain and _comparable(other.args) == wanted:
                return other
    return None


def _comparable(args: Mapping[str, Any]) -> dict[str, Any]:
    """What two runs must have in common so that their curves can be compared."""
    keys = ("method", "method_kwargs", "backbone", "augmentations", "optimizer", "scheduler")
    data = args.get("data") or {}
    found = {key: args.get(key) for key in (*keys, "max_epochs", "momentum")}
    return {**found, "dataset": data.get("dataset")}


def lead(log: RunLog) -> str:
    """One sentence: what was trained how, on what, for how long."""
    kind = "Self-supervised pretraining" if log.is_pretraining else "Linear evaluation"
    if log.args.get("finetune"):
        kind = "Fine-tuning"
    args = log.args
    data = args.get("data") or {}
    named = data.get("path") and f"the images of {Path(data['path']).name}"
    on = named or data.get("dataset")
    parts = [args.get("pretrain_method") or args.get("method"), _encoder(args), _epochs(log)]
    told = ", ".join(part for part in parts if part)
    return f"{kind}{f' on {on}' if on else ''}{f': {told}' if told else ''}."


def _encoder(args: Mapping[str, Any]) -> str:
    backbone = args.get("backbone") or {}
    kwargs = ", ".join(f"{k}={v}" for k, v in (backbone.get("kwargs") or {}).items())
    return " ".join(filter(None, (backbone.get("name"), kwargs)))


def _epochs(log: RunLog) -> str:
    """How many epochs are over, of how many."""
    total = log.args.get("max_epochs")
    done = max((e for name in log.names if (s := log.get(name)) for e in s.epochs), default=0)
    return "" if total is None else f"{done:g} of {total} epochs"


def _facts(log: RunLog, measured: Measured) -> dict[str, str]:
    args = log.args
    data, optimizer = (args.get(key) or {} for key in ("data", "optimizer"))
    facts = {
        "Method": args.get("pretrain_method") or args.get("method"),
        "Encoder": _encoder(args),
        "Data": data.get("dataset"),
        "Epochs finished": _epochs(log).removesuffix(" epochs"),
        "Optimizer": optimizer.get("name"),
        "Learning rate in effect": _short(optimizer.get("lr")),
        "Batch": _short(optimizer.get("batch_size")),
        "Seed": _short(args.get("seed")),
        "Sparsity": _sparsity(log, measured),
        "Gates": _gates(args.get("gating")),
        "Evaluated encoder": args.get("eval_encoder"),
    }
    return {name: value for name, value in facts.items() if value}


def _short(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _sparsity(log: RunLog, measured: Measured) -> str:
    """The ramp as configured; of an encoder that is sparse already, what was measured."""
    section = log.args.get("sparse")
    if section:
        from sparse_ext.config.sections import build

        config = build(section)
        text = f"{config.name}: online {100 * config.initial:g}% to {100 * config.final:g}%"
        if not log.has_momentum_encoder:
            return text.replace("online ", "")
        first, last = config.momentum
        return f"{text}, momentum {100 * first:g}% to {100 * last:g}%"
    shares = verdict.shares_pruned(log, measured)
    if not any(shares.values()):
        return "dense" if shares else ""
    several = len(shares) > 1
    found = [f"{name} {share:.1%}" if several else f"{share:.1%}" for name, share in shares.items()]
    return f"{', '.join(found)}, fixed"


def _gates(section: Any) -> str:
    """The gating method and every setting that is not its default."""
    if not section or "name" not in section:
        return ""
    from sparse_ext.gating.config.sections import METHODS

    usual = METHODS[section["name"]]()
    own = {k: v for k, v in section.items() if v != getattr(usual, k, v)}
    return ", ".join([section["name"], *(f"{key}={value}" for key, value in own.items())])
