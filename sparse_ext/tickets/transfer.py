# SPDX-License-Identifier: MIT
"""Pruned representations on VOC 2007: each level's frozen features under linear SVMs (figure 1)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms as T

from solo.checkpoints import load_pretrained
from solo.data.catalogue import IMAGENET_MEAN, IMAGENET_STD
from solo.data.datasets.voc import VOCClassification
from solo.errors import DataError
from solo.utils.voc_svm import SVMResult, evaluate
from sparse_ext.tickets.run_folder import Level, RunFolder


def central_crops(resize: int = 256, size: int = 224) -> T.Compose:
    """Resize the shorter side, cut the centre, normalise as ImageNet."""
    ending = [T.ToTensor(), T.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    return T.Compose([T.Resize(resize), T.CenterCrop(size), *ending])


@torch.no_grad()
def features(encoder: nn.Module, data: VOCClassification, batch_size: int = 64) -> np.ndarray:
    """Pooled features (N, F) of all images, in order, by a frozen encoder in eval mode."""
    encoder.eval()
    device = next(encoder.parameters()).device
    found = [encoder(x.to(device)).float().cpu() for x, _ in DataLoader(data, batch_size)]
    return torch.cat(found).numpy()


def svm_of(
    encoder: nn.Module,
    root: str | Path,
    resize: int = 256,
    size: int = 224,
    protocol: str = "goyal",
) -> SVMResult:
    """VOC 2007: SVMs trained on trainval, mean average precision on test.

    Args:
        encoder: images (N, 3, size, size) to (N, F).
        root: folder of the development kit.
        resize: shorter side before cropping.
        size: side of the crop.
        protocol: see `solo.utils.voc_svm.select_cost`.
    """
    crops = central_crops(resize, size)
    sets = [VOCClassification(root, split, crops) for split in ("trainval", "test")]
    train, test = ((features(encoder, data), data.labels) for data in sets)
    return evaluate(train, test, sets[0].classes, protocol=protocol)


def transfer(source: str | Path, voc: str | Path, output: str | Path, **settings: Any) -> RunFolder:
    """Evaluate each finished level of a sweep; levels that are done are skipped.

    Args:
        source: run folder of the sweep.
        voc: folder of VOC 2007.
        output: run folder to write, which the curves read (metric `map`).
        settings: `resize`, `size` and `protocol`.

    Raises:
        DataError: the sweep has no finished level, or VOC is incomplete.
    """
    sweep, run = RunFolder(source), RunFolder(output)
    facts, levels = sweep.facts(), sweep.finished()
    if not levels:
        raise DataError(f"{source}: no complete level; let the sweep finish first")
    kept = {key: facts[key] for key in ("curve", "seed", "method")}
    given = {**facts["fingerprint"], "transfer.voc": str(voc), **settings}
    with run.alone():
        run.claim({**kept, "kind": "transfer", "figure": "voc07-svm", "fingerprint": given})
        for level in levels:
            done = run.level(level.number)
            if done.done is None:
                _evaluate(level, done, voc, settings)
    return run


def _evaluate(level: Level, into: Level, voc: str | Path, settings: dict[str, Any]) -> None:
    record = level.done or {}
    result = svm_of(load_pretrained(level.folder / record["run"]), voc, **settings)
    metrics = {"map": result.map, **{f"ap/{k}": 100 * v for k, v in result.precision.items()}}
    into.finish({"density": record["density"], "metrics": metrics, "costs": result.costs})
    print(f"{level.folder}: {100 * record['density']:.3g}% of the weights; mAP {result.map:.2f}")
