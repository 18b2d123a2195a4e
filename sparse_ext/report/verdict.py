# SPDX-License-Identifier: MIT
"""The first thing on the page: how good, how sparse, how large, how long."""

from __future__ import annotations

from typing import Any, NamedTuple

from solo.monitoring.console import duration, rate, short
from sparse_ext.report.gating_panels import macs_share
from sparse_ext.report.measured import Measured
from sparse_ext.report.runlog import RunLog


class Figure(NamedTuple):
    """A figure of the verdict: what it is, its value with unit, and what it was measured on."""

    name: str
    value: str
    note: str = ""


def figures(log: RunLog, measured: Measured) -> list[Figure]:
    """The figures that are known of a run, the most important first."""
    found = [accuracy(log), knn(log), *sparsities(log, measured), macs(log, measured)]
    found += [size(measured), seconds(log)]
    return [figure for figure in found if figure is not None]


def accuracy(log: RunLog) -> Figure | None:
    """Top-1 accuracy: of a linear evaluation where there was one, else while training."""
    found = best_accuracy(log)
    return None if found is None else Figure("Accuracy", f"{found[0]:.1f}%", found[1])


def best_accuracy(log: RunLog) -> tuple[float, str] | None:
    """Top-1 accuracy in per cent, and by which protocol."""
    evaluated = [e for e in log.results.get("linear", []) if e.get("encoder") == "online"]
    if evaluated:
        kind = "fine-tuned" if evaluated[-1].get("finetune") else "linear evaluation"
        return evaluated[-1]["acc1"], f"{kind}, last epoch"
    series = log.get("val_acc1")
    if series is None:
        seen = log.get("train_acc1")
        return None if seen is None else (seen.last, "training images: no others were looked at")
    kind = "online classifier, while training"
    if not log.is_pretraining:
        kind = "fine-tuned, last epoch" if log.args.get("finetune") else "linear, last epoch"
    return series.last, kind


def knn(log: RunLog) -> Figure | None:
    """kNN accuracy of `main_knn.py` where it was run, else of the validation while training."""
    found = best_knn(log)
    if found is not None:
        return Figure("kNN", f"{found[0]:.1f}%", found[1])
    rank = log.get("quality/backbone_rankme")
    if "val_acc1" in log or rank is None:
        return None
    return Figure("Effective rank", f"{rank.last:.1f}", "RankMe of the features, no labels needed")


def best_knn(log: RunLog) -> tuple[float, str] | None:
    """kNN accuracy in per cent, and by which protocol."""
    evaluated = [e for e in log.results.get("knn", []) if e.get("encoder") == "online"]
    if evaluated:
        best = next((e for e in reversed(evaluated) if e.get("k") == 20), evaluated[-1])
        return best["acc1"], f"main_knn.py, k = {best['k']}"
    series = log.get("val_knn_acc1")
    return None if series is None else (series.last, "validation images, while training")


def sparsities(log: RunLog, measured: Measured) -> list[Figure]:
    """Sparsity of every encoder: of the checkpoint, else as logged; `dense` where nothing is.

    Nothing of an encoder with gates and no masks: its MACs say what is left out.
    """
    shares = shares_pruned(log, measured)
    if macs_share(log) is not None and not any(shares.values()):
        return []
    named = len(shares) > 1
    return [
        Figure(
            f"{name.capitalize()} sparsity" if named else "Sparsity",
            f"{100 * share:.1f}%" if share else "dense",
            "zeros in the prunable set" if share else "",
        )
        for name, share in shares.items()
    ]


def shares_pruned(log: RunLog, measured: Measured) -> dict[str, float]:
    """Zeros in the prunable set by encoder, from 0 to 1: of the checkpoint, else as logged."""
    if measured.tables:
        return measured.sparsities
    names = {"online": "sparse/online_sparsity", "momentum": "sparse/momentum_sparsity"}
    found = {name: log.get(key) for name, key in names.items()}
    found["online"] = found["online"] or log.get("encoder/sparsity")
    return {name: series.last for name, series in found.items() if series is not None}


def macs(log: RunLog, measured: Measured) -> Figure | None:
    """Multiply-accumulates per image at the training size, of kept weights or open gates."""
    if not measured.tables:
        return None
    table = next(iter(measured.tables.values()))
    dense, used = table.macs_dense, macs_used(log, measured)
    sides = "x".join(map(str, table.input_shape[1:]))
    if used is None or round(used) == dense:
        return Figure("MACs per image", short(dense), f"at {sides}")
    note = f"of {short(dense)} dense ({100 * used / dense:.0f}%) at {sides}; counted, not timed"
    return Figure("MACs per image", short(used), note)


def macs_used(log: RunLog, measured: Measured) -> float | None:
    """MACs per image of the online encoder: of kept weights, or of what gates let through."""
    if not measured.tables:
        return None
    table, gates = next(iter(measured.tables.values())), macs_share(log)
    return table.macs_effective if gates is None else gates * table.macs_dense


def size(measured: Measured) -> Figure | None:
    """Bytes of the online encoder, dense and in sparse storage."""
    if not measured.sizes:
        return None
    bytes_ = next(iter(measured.sizes.values()))
    dense = f"{bytes_.dense / 1e6:.3g} MB"
    if bytes_.kept == bytes_.dense:
        return Figure("Encoder", dense, "float32")
    note = f"of {dense} dense (float32); kept weights and their index"
    return Figure("Encoder", f"{bytes_.total / 1e6:.3g} MB", note)


def seconds(log: RunLog) -> Figure | None:
    """Training time and images per second of a run; None where its results hold no time."""
    run: dict[str, Any] = log.results.get("run", {})
    if not run.get("seconds"):
        return None
    speed = run.get("images_per_second")
    return Figure(
        "Training time", duration(run["seconds"]), f"{rate(speed)} images/s" if speed else ""
    )
