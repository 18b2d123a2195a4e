# SPDX-License-Identifier: MIT
"""The panels of a gated run: how many gates are open, in all and per layer, and what that saves."""

from __future__ import annotations

from sparse_ext.report import plots
from sparse_ext.report.page import Page
from sparse_ext.report.runlog import RunLog, Series

_COST = {
    "gating/rho": "training views (noisy gates)",
    "gating/val_rho": "validation images",
}
_LOSSES = {
    "gating/budget_loss": "budget, L_G",
    "gating/bound_loss": "bounds of single layers",
}


def cost(page: Page, log: RunLog) -> None:
    """MACs of the gated branch over those of the dense network, beside the budget."""
    found = {label: s for name, label in _COST.items() if (s := log.get(name)) is not None}
    if not found:
        return
    budget = (log.args.get("gating") or {}).get("budget")
    levels = {} if budget is None else {f"budget ({100 * budget:g}%)": 100 * budget}
    shares = {label: Series(s.epochs, [100 * v for v in s.values]) for label, s in found.items()}
    text = "Counted in multiply-accumulates, mean per image of an epoch; not a measured time: "
    text += "closed gates are simulated."
    figure = plots.lines(shares, "MACs used (%)", levels=levels)
    page.figure("MACs of the gated network", figure, text)


def losses(page: Page, log: RunLog) -> None:
    """What keeps the gates within the budget."""
    found = {label: s for name, label in _LOSSES.items() if (s := log.get(name)) is not None}
    if found:
        text = "Added to the method's loss, with their weights."
        page.figure("Losses of the gates", plots.lines(found, "loss"), text)


def rates(page: Page, log: RunLog) -> None:
    """Share of open gates of every layer over the run: while training, and in validation."""
    for prefix, where in (("", "training views, noisy gates"), ("val_", "validation images")):
        found = log.group(f"gating/{prefix}rate/")
        if not found:
            continue
        epochs = next(iter(found.values())).epochs
        rows = {name: s.values for name, s in found.items() if s.epochs == epochs}
        figure = plots.heatmap(list(rows), epochs, list(rows.values()), "share of open gates")
        text = f"Mean over the {where}, of each epoch; the number is the last."
        page.figure(f"Open gates per layer, {where.split(',')[0]}", figure, text, wide=True)


PANELS = (cost, losses, rates)
