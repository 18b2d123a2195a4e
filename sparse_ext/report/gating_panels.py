# SPDX-License-Identifier: MIT
"""The panels of a run with gates: what was left out, layer by layer, and in which branch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sparse_ext.report import plots
from sparse_ext.report.page import Page
from sparse_ext.report.runlog import RunLog, Series

# what is logged per layer -> (title, quantity, what it says)
_LAYERED = {
    "eta": (
        "Conditional sparsity per layer",
        "share not computed",
        "Share of the conditional path's outputs that stayed closed",
    ),
    "rate": ("Open gates per block", "share open", "Share of channels whose gate is open"),
    "rho_out": ("Channels kept per layer", "share kept", "Share of output channels that stayed"),
    "rho_in": ("Channels kept per layer", "share kept", "Share of input channels that heads kept"),
    "mask_similarity": (
        "Mask similarity per layer",
        "cosine",
        "Cosine of the decisions for two views of an image, along the channels",
    ),
}
_VALIDATION = {"gating/val_": "validation images", "encoder/": "validation images"}


@dataclass(frozen=True)
class Chosen:
    """The images whose feature maps the report draws.

    Attributes:
        files: pictures.
        layer: a gated convolution; None = the encoder's second convolution.
        channel: None = the one whose output varies most.
    """

    files: tuple[Path, ...]
    layer: str | None = None
    channel: int | None = None


def branches(log: RunLog) -> dict[str, str]:
    """Prefix of a quantity -> its legend: training per branch, then validation."""
    found = {}
    for name in log.names:
        first, _, rest = name.partition("/")
        branch, _, quantity = rest.partition("/")
        if (first, quantity) == ("gating", "rho"):
            found[f"gating/{branch}/"] = f"training views, branch {branch}"
    if "gating/rho" in log:
        found["gating/"] = "training views"
    return found | {prefix: text for prefix, text in _VALIDATION.items() if f"{prefix}rho" in log}


def macs_share(log: RunLog) -> float | None:
    """MACs that the gates left, over the dense ones, measured last; None without gates."""
    for name in ("gating/val_rho", "encoder/rho", "gating/rho"):
        series = log.get(name)
        if series is not None:
            return series.last
    return None


def gate_losses(page: Page, log: RunLog) -> None:
    """Panel of the losses that the gates add to training."""
    losses = {n: n.removeprefix("gating/").replace("_", " ") for n in log.names if "_loss" in n}
    found = {label: log.series(n) for n, label in losses.items() if n.startswith("gating/")}
    if found:
        text = "Weighted, as they are added to the method's loss; mean over each epoch."
        page.figure("Losses of the gates", plots.lines(found, "loss"), text)


def reduction(page: Page, log: RunLog) -> None:
    """MACs used over those of the dense network."""
    found = _over_branches(log, "rho")
    if found:
        text = (
            "Multiply-accumulates used, over those of the dense network: convolutions of the whole "
            "encoder and the gates' own. Counted, not timed: what is closed is simulated."
        )
        budget = (log.args.get("gating") or {}).get("budget")
        levels = {} if budget is None else {f"budget ({100 * budget:g}%)": 100 * budget}
        figure = plots.lines(found, "of the dense MACs (%)", levels=levels)
        page.figure("MACs of the gated encoder", figure, text)


def conditional(page: Page, log: RunLog) -> None:
    """Conditional sparsity of the encoder over the run (CDG, Fig. 8a and b)."""
    found = _over_branches(log, "eta")
    if found:
        text = "Share of all conditional paths' outputs that stayed closed (CDG, Fig. 8)."
        figure = plots.lines(found, "closed (%)")
        page.figure("Conditional sparsity", figure, text)


def similarity(page: Page, log: RunLog) -> None:
    """How alike the decisions for two views of an image are (CDG, Fig. 4)."""
    found = log.get("gating/mask_similarity")
    if found:
        text = (
            "Cosine of the two decisions along the channels, mean over places, images and layers "
            "(CDG, Fig. 4); of the two views that the loss compares."
        )
        page.figure("Mask similarity", plots.lines({"all layers": found}, "cosine"), text)


def layers(page: Page, log: RunLog) -> None:
    """Every layer over the run, and the last validation by layer (CDG, Fig. 8c)."""
    for quantity, (title, label, meaning) in _LAYERED.items():
        for prefix, text in (branches(log) | {"gating/": "training views"}).items():
            found = log.group(f"{prefix}{quantity}/")
            if prefix in _VALIDATION:
                _bars(page, title, found, f"{meaning}: {text}, last epoch.")
            elif found:
                _heatmap(page, f"{title} ({text})", found, label, f"{meaning}: {text}.")


def _heatmap(page: Page, title: str, found: dict[str, Series], label: str, text: str) -> None:
    epochs = next(iter(found.values())).epochs
    rows = {name: s.values for name, s in found.items() if s.epochs == epochs}
    figure = plots.heatmap(list(rows), epochs, list(rows.values()), label)
    page.figure(title, figure, f"{text} The number is the last.", wide=True)


def _bars(page: Page, title: str, found: dict[str, Series], text: str) -> None:
    if found:
        shares = {name: 100 * s.last for name, s in found.items()}
        page.figure(f"{title}, validation", plots.bars(shares, "%"), text)


def _over_branches(log: RunLog, quantity: str) -> dict[str, Series]:
    """In per cent, by legend."""
    series = {text: log.get(f"{prefix}{quantity}") for prefix, text in branches(log).items()}
    return {
        text: Series(s.epochs, [100 * value for value in s.values])
        for text, s in series.items()
        if s is not None
    }


def feature_maps(page: Page, log: RunLog, chosen: Chosen) -> None:
    """Base path, open conditional path and their sum for chosen images (CDG, Fig. 9).

    Raises:
        SoloError: no checkpoint, an encoder without such paths, or a file that is no image.
    """
    from solo.checkpoints import load_run
    from sparse_ext.gating.methods.spatial.maps import SECOND, closed, load_images
    from sparse_ext.gating.methods.spatial.maps import feature_maps as maps_of

    backbone, args = load_run(log.folder)
    pictures, images = load_images(chosen.files, args)
    layer = chosen.layer or SECOND
    maps, channel = maps_of(backbone, images, layer, chosen.channel)
    shares = ", ".join(f"{branch} {share:.0%}" for branch, share in closed(maps).items())
    rows: list[Sequence[tuple[str, object]]] = []
    for index, (file, picture) in enumerate(zip(chosen.files, pictures, strict=True)):
        for branch, one in maps.items():
            parts = {f"{branch}: base path": one.base, "conditional path, open": one.conditional}
            drawn = [(name, part[index].numpy()) for name, part in parts.items()]
            rows.append([(file.stem, picture), *drawn, ("sum", one.total[index].numpy())])
    text = (
        f"{layer}, channel {channel} (CDG, Fig. 9). Each map has its own scale. Closed in this "
        f"channel: {shares}. Evaluation takes a1; where there is an a2, it is a view's in training."
    )
    page.figure("Feature maps of base and conditional path", plots.pictures(rows), text, wide=True)


PANELS = (gate_losses, reduction, conditional, similarity, layers)
