# SPDX-License-Identifier: MIT
"""The panels of a run: each draws one aspect if the run logged it, and says what it shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from solo.monitoring.metric_names import own_losses, words
from sparse_ext.report import plots
from sparse_ext.report.page import Page
from sparse_ext.report.runlog import RunLog, Series

# class losses and accuracies come from a linear classifier that does not train the encoder
CLASS_TEXTS = {
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
    "sparse/mask_flips": "positions changed, measured",
    "sparse/drop_fraction": "swaps per update, planned",
}
_MACS = {
    "sparse/macs_effective": "online encoder",
    "sparse/macs_effective_momentum": "momentum encoder",
    "sparse/macs_dense": "dense",
}
MEASURED = "measured"
_PER_LAYER = {
    "density": "Online encoder, measured from the masks at the end of each epoch; the number is "
    "the last.",
    "inconsistency": "Share of a layer's positions where the pseudo-masks differ, as long as CSI "
    "looked; the number is the last.",
    "oscillation": "At the last update of each epoch; the number is the last.",
}


def losses(page: Page, log: RunLog, dense: RunLog | None = None) -> None:
    """The method's loss, beside that of the dense twin where there is one."""
    found = _found(log, {name: words(name) for name in own_losses(log.names)})
    if found:
        _add_twin(found, dense, {name: words(name) for name in own_losses(log.names)})
        text = "Mean over each epoch's training views."
        figure = plots.lines(found, "loss", _twin_styles(found), _trigger(log))
        page.figure("Self-supervised loss", figure, text + _about_twin(found, dense))


def class_losses(page: Page, log: RunLog) -> None:
    """Losses of the linear classifiers, which differ in scale from the method's."""
    found = _found(log, CLASS_TEXTS)
    if found:
        text = "Cross-entropy of the linear classifier; its gradient does not reach the encoder."
        if log.args.get("finetune"):
            text = "Cross-entropy; the encoder is fine-tuned."
        page.figure("Classification loss", plots.lines(found, "cross-entropy (nats)"), text)


def accuracy(page: Page, log: RunLog, dense: RunLog | None = None) -> None:
    """Panel of the top-1 accuracies during training, beside those of the dense twin."""
    found = _found(log, ACCURACIES)
    if found:
        _add_twin(found, dense, {k: v for k, v in ACCURACIES.items() if k.startswith("val_")})
        text = "Logged during training, at the end of each epoch. "
        text += (
            "Protocols: see the legend; the published figure is that of main_linear.py."
            if log.is_pretraining
            else "Last epoch counts, not the best."
        )
        figure = plots.lines(found, "top-1 accuracy (%)", _twin_styles(found), _trigger(log))
        page.figure("Accuracy", figure, text + _about_twin(found, dense))


def spread(page: Page, log: RunLog) -> None:
    """Standard deviation of normalised projections, which falls to 0 where a method collapses."""
    found = log.get("train_z_std")
    if found is None:
        return
    width = (log.args.get("method_kwargs") or {}).get("proj_output_dim")
    levels = {f"spread evenly: 1/sqrt({width})": width**-0.5} if width else {}
    text = (
        "Standard deviation over a batch of the normalised projections, mean over dimensions: 0 "
        "means that all images have become the same point (SimSiam, section 4.1)."
    )
    figure = plots.lines({"z_std": found}, "standard deviation", levels=levels)
    page.figure("Spread of the projections", figure, text)


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
    if not log.has_momentum_encoder:
        found = {label: s for label, s in found.items() if "momentum" not in label}
    if not found:
        return
    samples = log.get("quality/samples")
    rows = f", over {samples.values[-1]:,.0f} rows" if samples is not None else ""
    text = f"RankMe at the end of each epoch{rows}: augmented training views of its last images."
    if "sparse/online_sparsity" in log:
        text += " Where it falls once the ramp has started, sparsity costs the features variety."
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
    _heatmap(page, log, "inconsistency", "Inconsistency per layer", "inconsistency I")


def movement(page: Page, log: RunLog) -> None:
    """Panel of how much the masks still change."""
    found = _found(log, _MOVEMENT, scale=100)
    if found:
        whose = "both encoders' masks" if log.has_momentum_encoder else "the masks"
        text = f"Measured: positions of {whose} that changed, over all positions. "
        text += "Planned: swaps of prune-and-regrow, of the kept weights."
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
    """MACs of both encoders over the run."""
    found = _found(log, _MACS, scale=1e-6)
    if found:
        text = "Per image at the size of the first view, kept weights only: modelled from masks."
        figure = plots.lines(found, "MACs (millions)", marks=_trigger(log))
        page.figure("Effective MACs", figure, text)


def seconds(page: Page, log: RunLog) -> None:
    """Measured time of a training step, beside what effective MACs would have it be."""
    found = _found(log, {"sparse/seconds_per_step": MEASURED})
    if not found:
        return
    macs, (epochs, times) = log.get("sparse/macs_effective"), found[MEASURED]
    if macs is not None and macs.epochs == epochs and macs.values[0]:
        found["in proportion to effective MACs"] = Series(
            epochs, [times[0] * value / macs.values[0] for value in macs.values]
        )
    used = log.get("sparse/kernel_layers")
    text = "By the clock, mean over each epoch's steps, without waiting for data."
    if used is not None:
        text += f" In the last epoch {used.last:.0f} layers of the online encoder left out pruned"
        text += " weights (sparse.kernel)."
    styles: dict[str, dict[str, object]] = {
        label: {"color": plots.GREY, "linestyle": "--", "linewidth": 1.3, "marker": ""}
        for label in found
        if label != MEASURED
    }
    figure = plots.lines(found, "seconds", styles, _trigger(log))
    page.figure("Seconds per training step", figure, text)


def training_cost(page: Page, log: RunLog) -> None:
    """What training has cost so far, by the conventions of papers."""
    found = _found(log, {f"sparse/training_cost_{name}": f"convention {name}" for name in "ABC"})
    if found:
        text = (
            "Modelled in MACs from the masks of every step so far, over dense training. A: every "
            "pass of the online encoder is sparse; B: the gradient of the weights stays dense; C: "
            "forward passes only."
        )
        page.figure("Training cost so far", plots.lines(found, "over dense training"), text)


def density(page: Page, log: RunLog) -> None:
    """Density of every prunable layer over the run."""
    _heatmap(page, log, "density", "Density per layer", "density (kept share)")


def _heatmap(page: Page, log: RunLog, quantity: str, title: str, label: str) -> None:
    found = log.group(f"sparse/layer_{quantity}/")
    if not found:
        return
    epochs = next(iter(found.values())).epochs
    rows = {name: s.values for name, s in found.items() if s.epochs == epochs}
    figure = plots.heatmap(list(rows), epochs, list(rows.values()), label)
    page.figure(title, figure, _PER_LAYER[quantity], wide=True)


#: what a run learns, then what happens to its masks, then the details
LEARNING = (losses, accuracy)
MASKS = (sparsity, quality, movement, macs, seconds, density)
DETAILS = (inconsistency, oscillation, dead_filters, training_cost, spread, class_losses, momentum)


TWIN = "dense twin: "


def _add_twin(found: dict[str, Series], dense: RunLog | None, labels: Mapping[str, str]) -> None:
    """Add the same quantities of the dense twin."""
    if dense is not None:
        found |= {f"{TWIN}{label}": s for label, s in _found(dense, labels).items()}


def _twin_styles(found: Mapping[str, Series]) -> dict[str, dict[str, object]]:
    """Lines of the twin in the colour of the run's own, dashed and paler."""
    own = [label for label in found if not label.startswith(TWIN)]
    colours = {f"{TWIN}{label}": plots.CYCLE[i % len(plots.CYCLE)] for i, label in enumerate(own)}
    style = {"linestyle": (0, (4, 2)), "alpha": 0.65, "linewidth": 1.5, "marker": ""}
    return {label: {"color": colour, **style} for label, colour in colours.items()}


def _about_twin(found: Mapping[str, Series], dense: RunLog | None) -> str:
    if dense is None or not any(label.startswith(TWIN) for label in found):
        return ""
    return f" Dashed: the dense run with the same configuration ({dense.folder})."


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
