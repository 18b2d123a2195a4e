# SPDX-License-Identifier: MIT
"""What became of an encoder: measured figures, a run folder that every program opens, a curve."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from solo.checkpoints.writer import write_checkpoint
from solo.files.whole import write_json, write_text
from sparse_ext.cost.memory import memory
from sparse_ext.cost.per_layer import count
from sparse_ext.masks.masking import measured
from sparse_ext.prune.encoder import Layers
from sparse_ext.prune.images import Images
from sparse_ext.prune.plan import Plan

NEIGHBOURS = 20


@torch.no_grad()
def features(encoder: nn.Module, batches: list[Tensor]) -> Tensor:
    """Features (N, F) of all images, in float32."""
    return torch.cat([encoder(batch).float() for batch in batches])


def knn_accuracy(found: Tensor, labels: Tensor) -> float | None:
    """Leave-one-out accuracy in percent of a cosine kNN vote among labelled images.

    Args:
        found: features (N, F).
        labels: (N,), -1 where an image has none.

    Returns:
        None with fewer than two classes or no more than `NEIGHBOURS` images.
    """
    votes = knn_votes(found, labels)
    return None if votes is None else 100 * float((votes == labels[labels >= 0]).float().mean())


def knn_votes(found: Tensor, labels: Tensor) -> Tensor | None:
    """The class that a leave-one-out cosine kNN vote gives each labelled image; else as above."""
    found, labels = found[labels >= 0], labels[labels >= 0]
    if len(labels.unique()) < 2 or len(labels) <= NEIGHBOURS:
        return None
    similar = F.normalize(found, dim=1) @ F.normalize(found, dim=1).T
    similar.fill_diagonal_(-math.inf)
    near = similar.topk(NEIGHBOURS, dim=1).indices
    return F.one_hot(labels[near], int(labels.max()) + 1).sum(1).argmax(1)


@torch.no_grad()
def milliseconds(encoder: nn.Module, batch: Tensor, rounds: int = 3) -> float:
    """Shortest wall time of a forward pass over `rounds`, per image, in milliseconds.

    Masked convolutions multiply with their zeros: this is the time of the dense kernels.
    """
    times = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        encoder(batch)
        times.append(time.perf_counter() - began)
    return 1000 * min(times[1:]) / len(batch)


def figures(net: nn.Module, dense: Tensor, images: Images, size: int) -> dict[str, Any]:
    """What a sparse encoder is, on images that calibration has not seen.

    Args:
        net: the sparse encoder, in evaluation mode.
        dense: features of the dense encoder on the same images.
        images: see above.
        size: side of the images.

    Returns:
        `sparsity`, `feature_cosine` (mean over images with the dense features), `knn_acc1`
        (percent, or None), `macs_dense`, `macs_effective`, `megabytes` (kept values and mask
        bits), `milliseconds` (per image, measured, dense kernels).
    """
    found = features(net, images.batches)
    table = count(net, size)
    return {
        "sparsity": measured(net)["sparsity"],
        "feature_cosine": float(F.cosine_similarity(found, dense).mean()),
        "knn_acc1": knn_accuracy(found, images.labels),
        "macs_dense": table.macs_dense,
        "macs_effective": table.macs_effective,
        "megabytes": memory(table, "element").total / 1e6,
        "milliseconds": milliseconds(net, images.batches[0]),
    }


def write_run(
    folder: Path,
    net: nn.Module,
    args: Mapping[str, Any],
    plan: Plan,
    sparsity: float,
    layers: Layers,
    found: Mapping[str, Any],
) -> Path:
    """Write a sparse encoder as a run folder and return its checkpoint.

    Args:
        folder: of the run; made if it is not there.
        net: the sparse encoder.
        args: configuration of its source.
        plan: by which it was pruned.
        sparsity: the goal.
        layers: pruned layers, whose errors are written down.
        found: measured figures.
    """
    about = asdict(plan.settings) | {"sparsities": [sparsity], "allocation": plan.settings.rule}
    name = f"{args.get('name', 'encoder')}-pruned"
    write_json(folder / "args.json", {**args, "name": name, "pruned": about})
    errors = {
        key: {
            "sparsity": 1 - float(layer.mask.float().mean()),
            "output_error": None if math.isnan(layer.error) else layer.error,
        }
        for key, layer in layers.items()
    }
    dense = plan.selection.dense
    write_json(folder / "pruned.json", {"figures": dict(found), "layers": errors, "dense": dense})
    measured_now = {f"pruned/{key}": value for key, value in found.items() if value is not None}
    columns = {"epoch": 0, "step": 0, "sparse/online_sparsity": found["sparsity"], **measured_now}
    write_text(
        folder / "metrics.csv",
        ",".join(columns) + "\n" + ",".join(str(value) for value in columns.values()) + "\n",
    )
    state = {f"backbone.{key}": value for key, value in net.state_dict().items()}
    path = folder / f"{name}-0-ep=0.ckpt"
    content = {"state_dict": state, "epoch": 0, "global_step": 0, "pruned": about}
    return write_checkpoint(path, content)


def draw_curve(path: Path, rows: Sequence[Mapping[str, Any]], dense: Mapping[str, Any]) -> None:
    """Draw feature cosine and kNN accuracy over sparsity, with the dense encoder as a line."""
    from matplotlib.figure import Figure

    columns = {"feature_cosine": "cosine of features with the dense encoder's"}
    if dense.get("knn_acc1") is not None:
        columns["knn_acc1"] = f"kNN top-1 (%), k={NEIGHBOURS}, leave one out"
    figure = Figure(figsize=(5 * len(columns), 3.6), layout="constrained")
    for axes, (key, title) in zip(
        figure.subplots(1, len(columns), squeeze=False)[0], columns.items(), strict=True
    ):
        axes.plot([100 * row["sparsity"] for row in rows], [row[key] for row in rows], "o-")
        if dense.get(key) is not None:
            axes.axhline(dense[key], linestyle="--", color="grey", label="dense")
            axes.legend(frameon=False)
        axes.set_xlabel("sparsity of the prunable layers (%)")
        axes.set_title(title, fontsize=10)
    figure.savefig(path, dpi=120)
