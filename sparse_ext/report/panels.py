# SPDX-License-Identifier: MIT
"""The panels of a run: each draws one aspect if the run logged it, and says what it shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparse_ext.report import plots
from sparse_ext.report.page import Page
from sparse_ext.report.runlog import RunLog, Series

# class losses and accuracies come from a linear classifier that does not train the encoder
CLASS_LOSSES = {
    "train_class_loss": "online classifier, training views",
    "train_momentum_class_loss": "momentum classifier, training views",
    "train_loss": "training images",
    "val_loss": "validation images",
    "momentum_val_loss": "momentum classifier, validation images",
}
ACCURACIES = {
    "train_acc1": "linear, training images (augmented)",
    "val_acc1": "linear, validation images",
    "train_momentum_acc1": "momentum encoder, linear, training images (augmented)",
    "momentum_val_acc1": "momentum encoder, linear, validation images",
    "val_knn_acc1": "kNN, validation images",
}
EXTENSIONS = ("sparse/", "gating/")
SPARSITIES = {
    "sparse/online_sparsity": "online encoder",
    "sparse/momentum_sparsity": "momentum encoder",
    "sparse/gap": "gap",
}
_RANKS = {
    "quality/backbone_rankme": "online encoder",
    "quality/momentum_backbone_rankme": "momentum encoder",
    "quality/projector_rankme": "online projector",
    "quality/momentum_projector_rankme": "momentum projector",
}
_MOVEMENT = {
    "sparse/mask_flips": "mask positions changed (measured)",
    "sparse/drop_fraction": "swaps per update, of kept weights (planned)",
}
_MACS = {
    "sparse/macs_effective": "online encoder",
    "sparse/macs_effective_momentum": "momentum encoder",
    "sparse/macs_dense": "dense",
}
_PER_LAYER = {
    "density": "Online encoder, measured from the masks at the end of each epoch; the number is "
    "the last.",
    "inconsistency": "Share of a layer's positions where the pseudo-masks differ, as long as CSI "
    "looked; the number is the last.",
    "oscillation": "At the last update of each epoch; the number is the last.",
}


def losses(page: Page, log: RunLog) -> None:
    """Method losses and classification losses, which differ in scale, in two figures."""
    own = [
        name
        for name in log.names
        if "loss" in name and name not in CLASS_LOSSES and not name.startswith(EXTENSIONS)
    ]
    found = _found(log, {name: name.removeprefix("train_").replace("_", " ") for name in own})
    if found:
        text = "Mean over each epoch's training views."
        page.figure("Self-supervised loss", plots.lines(found, "loss", marks=_trigger(log)), text)
    found = _found(log, CLASS_LOSSES)
    if found:
        text = "Cross-entropy of the linear classifier; its gradient does not reach the encoder."
        if log.args.get("finetune"):
            text = "Cross-entropy; the encoder is fine-tuned."
        page.figure("Classification loss", plots.lines(found, "cross-entropy (nats)"), text)


def accuracy(page: Page, log: RunLog) -> None:
    """Panel of the top-1 accuracies during training."""
    found = _found(log, ACCURACIES)
    if found:
        text = "Logged during training, at the end of each epoch. "
        text += (
            "Protocols: see the legend; the published figure is that of main_linear.py."
            if is_pretraining(log)
            else "Last epoch counts, not the best."
        )
        page.figure("Accuracy", plots.lines(found, "top-1 accuracy (%)", marks=_trigger(log)), text)


def sparsity(page: Page, log: RunLog) -> None:
    """Sparsity of both encoders and their gap."""
    found = _found(log, SPARSITIES, scale=100)
    if not found:
        return
    styles: dict[str, dict[str, object]] = {
        "online encoder": {"color": plots.ONLINE},
        "momentum encoder": {"color": plots.MOMENTUM},
        "gap": {"color": plots.GREY, "linestyle": "--", "linewidth": 1.3},
    }
    figure = plots.lines(found, "zeros in the prunable set (%)", styles, _trigger(log))
    text = "Measured from the masks at the end of each epoch, over the prunable set (norms, biases"
    page.figure(
        "Sparsity", figure, text + " and layers that are dense by rule are not part of it)."
    )


def quality(page: Page, log: RunLog) -> None:
    """Panel of the effective rank of features, to be read beside the sparsity."""
    found = _found(log, _RANKS)
    if not found:
        return
    samples = log.get("quality/samples")
    rows = f", over {samples.values[-1]:,.0f} rows" if samples is not None else ""
    text = f"RankMe at the end of each epoch{rows}: augmented training views of its last images."
    if "sparse/online_sparsity" in log:
        text += " How it answers to the ramp is how much of the features sparsity costs."
    figure = plots.lines(found, "effective rank (RankMe)", marks=_trigger(log))
    page.figure("Effective rank", figure, text)


def inconsistency(page: Page, log: RunLog) -> None:
    """CSI: how far the pseudo-masks of both encoders, or of two epochs, differ."""
    found = log.get("sparse/inconsistency")
    if found is None:
        return
    text = "Share of prunable positions where the pseudo-masks at the final sparsities differ"
    levels, final = {}, _final(log.args.get("sparse") or {})
    if "sparse/momentum_sparsity" in log:
        text += " between the online and the momentum encoder. It cannot fall below the gap."
        if final:
            online, momentum = final
            levels["lowest possible (the gap)"] = abs(online - momentum)
            levels["unrelated encoders"] = online * (1 - momentum) + momentum * (1 - online)
    else:
        text += " between this epoch and the one before (one shared encoder)."
    text += " CSI stops looking once the ramp has started."
    figure = plots.lines({"I": found}, "inconsistency I", marks=_trigger(log), levels=levels)
    page.figure("Inconsistency and the start of the ramp", figure, text)


def movement(page: Page, log: RunLog) -> None:
    """Panel of how much the masks still change."""
    found = _found(log, _MOVEMENT, scale=100)
    if found:
        text = "Measured: positions of both encoders' masks that changed, over all positions. "
        text += "Planned: the schedule of prune-and-regrow."
        figure = plots.lines(found, "share (%)", marks=_trigger(log))
        page.figure("Mask changes", figure, text)


def momentum(page: Page, log: RunLog) -> None:
    """Panel of the coefficient of the momentum encoder."""
    found = _found(log, {"tau": "tau"})
    if found and len(found["tau"].values) > 1:
        text = "Weight of the momentum encoder's own past in its moving average."
        page.figure("Momentum coefficient", plots.lines(found, "tau"), text)


def oscillation(page: Page, log: RunLog) -> None:
    """Architecture oscillation over the run and per layer (SyncCP, Figure 2a)."""
    found = log.get("sparse/oscillation")
    if found is None:
        return
    text = "Share of weights whose mask differs before and after regrowth, at the last update of "
    text += "each epoch (Eq. 7)."
    figure = plots.lines({"all layers": found}, "share of weights", marks=_trigger(log))
    page.figure("Architecture oscillation", figure, text)
    _heatmap(page, log, "oscillation", "Architecture oscillation per layer", "share of weights")


def dead_filters(page: Page, log: RunLog) -> None:
    """Output channels that nothing is left of."""
    found = _found(log, {"sparse/dead_filters": "all prunable layers"}, scale=100)
    if found:
        text = "Output channels of the online encoder without a single kept weight."
        figure = plots.lines(found, "share of channels (%)", marks=_trigger(log))
        page.figure("Dead filters", figure, text)


def macs(page: Page, log: RunLog) -> None:
    """MACs of both encoders, and what training has cost, over the run."""
    found = _found(log, _MACS, scale=1e-6)
    if found:
        text = "Per image at the size of the first view, kept weights only: modelled from masks."
        figure = plots.lines(found, "MACs (millions)", marks=_trigger(log))
        page.figure("Effective MACs", figure, text)
    found = _found(log, {f"sparse/training_cost_{name}": f"convention {name}" for name in "ABC"})
    if found:
        text = "Modelled in MACs from the masks of every step so far, over dense training."
        page.figure("Training cost so far", plots.lines(found, "over dense training"), text)


def layers(page: Page, log: RunLog) -> None:
    """Density and inconsistency of every prunable layer over the run."""
    _heatmap(page, log, "density", "Density per layer", "density (kept share)")
    _heatmap(page, log, "inconsistency", "Inconsistency per layer", "inconsistency I")


def _heatmap(page: Page, log: RunLog, quantity: str, title: str, label: str) -> None:
    found = log.group(f"sparse/layer_{quantity}/")
    if not found:
        return
    epochs = next(iter(found.values())).epochs
    rows = {name: s.values for name, s in found.items() if s.epochs == epochs}
    figure = plots.heatmap(list(rows), epochs, list(rows.values()), label)
    page.figure(title, figure, _PER_LAYER[quantity], wide=True)


def is_pretraining(log: RunLog) -> bool:
    """Whether this is a run of main_pretrain.py."""
    return "method_kwargs" in log.args or any("class_loss" in name for name in log.names)


PANELS = (
    *(
        losses,
        accuracy,
        sparsity,
        quality,
        inconsistency,
        movement,
        oscillation,
        dead_filters,
        macs,
    ),
    *(momentum, layers),
)


def _found(log: RunLog, labels: Mapping[str, str], scale: float = 1) -> dict[str, Series]:
    """Series by label, those that were logged."""
    found = {label: log.get(name) for name, label in labels.items()}
    return {
        label: Series(s.epochs, [scale * v for v in s.values])
        for label, s in found.items()
        if s is not None
    }


def _trigger(log: RunLog) -> dict[str, float]:
    epoch = log.trigger_epoch
    return {} if epoch is None else {f"ramp starts (epoch {epoch:g})": epoch}


def _final(sparse: Mapping[str, Any] | str) -> tuple[float, float] | None:
    """Final sparsity of both encoders, as configured."""
    from sparse_ext.config.sections import build

    if not sparse:
        return None
    config = build(sparse)
    return config.final, config.momentum[1]
