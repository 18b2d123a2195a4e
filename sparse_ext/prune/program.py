# SPDX-License-Identifier: MIT
"""The whole way from a dense encoder and a folder of images to sparse run folders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from solo.errors import ConfigError
from solo.files.lock import FolderLock
from solo.files.run_args import read_args
from solo.files.whole import write_json
from solo.monitoring.console import waiting
from sparse_ext.prune import images, results
from sparse_ext.prune.encoder import (
    Store,
    estimate_batch_norms,
    prune_layers,
    sparse_copy,
)
from sparse_ext.prune.plan import Plan, Settings, make_plan
from sparse_ext.prune.source import Source, open_source


@dataclass(frozen=True)
class Request:
    """One call of `python3 -m sparse_ext.prune`.

    Attributes:
        source: the dense encoder (`sparse_ext.prune.source.open_source`).
        data: folder of images, labelled or not, or the name of an embedded data set (digits).
        out: run folder to write; with several sparsities the parent of one folder each.
        settings: how it is pruned.
        count: calibration images.
        which: `online` or `momentum` encoder of a run.
        backbone: of a weight file that is no run's.
        kwargs: its options.
        image_size: side of the images; None = the run's own.
    """

    source: str
    data: str | Path
    out: Path
    settings: Settings
    count: int = 256
    which: str = "online"
    backbone: str | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    image_size: int | None = None


def run(request: Request, say: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """Prune, estimate batch norms again, measure, write; returns one row of figures per sparsity.

    Layers that are finished are kept in the output folder, so the same call goes on where a call
    was interrupted, and a finished one writes the same files again.

    Raises:
        SoloError: a mistake in the source, the images or the settings.
    """
    if request.count < 2:
        raise ConfigError(f"--images {request.count}: at least 2 calibration images are needed.")
    for folder in _folders(request):
        _refuse_run(folder)
    source = open_source(
        request.source, request.which, request.backbone, request.kwargs, request.image_size
    )
    say(source.report)
    calibration, unseen = calibration_and_unseen(request, source)
    seen = sum(len(batch) for batch in calibration.batches)
    with waiting("budgets of the layers"):
        plan = make_plan(source.encoder, calibration.batches, request.settings)
    weights = sum(layer.weight.numel() for layer in plan.layers.values())
    say(
        f"{request.settings.method}, {plan.granularity}, budgets by {request.settings.rule}: "
        f"{len(plan.layers)} layers, {weights:,} weights; {seen} calibration images of "
        f"{source.size} pixels."
    )
    with FolderLock(request.out):
        return _prune(request, source, plan, calibration, unseen, say)


def _prune(
    request: Request,
    source: Source,
    plan: Plan,
    calibration: images.Images,
    unseen: images.Images,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Prune by a plan, and write what came out; the output folder is this program's."""
    store = Store(request.out, plan, source.encoder, calibration.batches)
    with tqdm(total=len(plan.layers), desc="layers") as bar:

        def advance(name: str) -> None:
            bar.set_postfix_str(name, refresh=False)
            bar.update()

        found = prune_layers(source.encoder, plan, calibration.batches, store, advance)
    with torch.no_grad(), waiting("features of the dense encoder"):
        dense = results.features(source.encoder, unseen.batches)
    top = _dense_figures(source, dense, unseen)
    rows = []
    for goal, layers, folder in zip(plan.goals, found, _folders(request), strict=True):
        net = sparse_copy(source.encoder, layers)
        with waiting(f"statistics and features at sparsity {goal.sparsity:g}"):
            estimate_batch_norms(net, calibration.batches)
            row = results.figures(net, dense, unseen, source.size)
        path = results.write_run(folder, net, source.args, plan, goal.sparsity, layers, row)
        rows.append({**row, "run": str(path.parent)})
    if len(rows) > 1:
        write_json(request.out / "curve.json", {"dense": top, "sparse": rows})
        results.draw_curve(request.out / "curve.png", rows, top)
    store.clear()
    say(table(rows, top))
    say(f"Next: python3 main_linear.py ... pretrained_feature_extractor={rows[0]['run']}")
    return rows


def _folders(request: Request) -> list[Path]:
    """The run folder of each sparsity.

    Raises:
        ConfigError: two sparsities would share one.
    """
    sparsities = request.settings.sparsities
    if len(sparsities) == 1:
        return [request.out]
    names = [f"{sparsity:g}" for sparsity in sparsities]
    if len(set(names)) < len(names):
        raise ConfigError(
            f"--sparsity {','.join(names)}: each gets a folder of its own, so none may come twice."
        )
    return [request.out / name for name in names]


def _refuse_run(folder: Path) -> None:
    """Raise ConfigError where something would be overwritten that pruning has not made."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"--out {folder} is a file: name a folder.")
    args = read_args(folder)
    if args is not None and "pruned" not in args:
        raise ConfigError(
            f"--out {folder} is the folder of the run '{args.get('name')}', whose args.json would "
            f"be overwritten: choose another folder."
        )


def calibration_and_unseen(request: Request, source: Source) -> tuple[images.Images, images.Images]:
    """Calibration images of a request, and as many that it does not see."""
    seed, args = request.settings.seed, source.args
    return images.calibration_and_unseen(request.data, request.count, seed, args, source.size)


def _dense_figures(source: Source, dense: torch.Tensor, unseen: images.Images) -> dict[str, Any]:
    from sparse_ext.cost.memory import memory
    from sparse_ext.cost.per_layer import count

    cost = count(source.encoder, source.size)
    return {
        "knn_acc1": results.knn_accuracy(dense, unseen.labels),
        "feature_cosine": 1.0,
        "macs_dense": cost.macs_dense,
        "macs_effective": cost.macs_dense,
        "megabytes": memory(cost, "element").total / 1e6,
        "milliseconds": results.milliseconds(source.encoder, unseen.batches[0]),
        "sparsity": 0.0,
    }


def table(rows: list[dict[str, Any]], dense: dict[str, Any]) -> str:
    """The figures of the dense and of each sparse encoder, as text."""
    heads = ("sparsity", "cosine", "kNN top-1", "MACs kept", "MB", "ms/image*")
    lines = [heads]
    for row in (dense, *rows):
        accuracy = row["knn_acc1"]
        lines.append(
            (
                f"{row['sparsity']:.2%}",
                f"{row['feature_cosine']:.4f}",
                "-" if accuracy is None else f"{accuracy:.1f}",
                f"{row['macs_effective'] / row['macs_dense']:.1%}",
                f"{row['megabytes']:.2f}",
                f"{row['milliseconds']:.2f}",
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    text = ["  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in lines]
    note = "* measured with dense kernels, which multiply with the zeros; export makes use of them"
    return "\n".join([*text, note])
