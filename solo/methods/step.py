# SPDX-License-Identifier: MIT
"""Small parts of a training or validation step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from solo.utils.metrics import accuracy_at_k


def class_metrics(logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Cross-entropy and accuracies over the labelled rows; 0, not NaN, where none is labelled."""
    labelled = targets.ne(-1).sum().clamp(min=1)
    loss = F.cross_entropy(logits, targets, ignore_index=-1, reduction="sum") / labelled
    acc1, acc5 = accuracy_at_k(logits, targets, top_k=(1, 5), ignore_index=-1)
    return {"loss": loss, "acc1": acc1, "acc5": acc5}


def val_metrics(out: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The figures of a validation batch under the names that they are logged by."""
    return {"val_loss": out["loss"], "val_acc1": out["acc1"], "val_acc5": out["acc5"]}


def by_key(views: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Dictionaries, one per view, to one dictionary of lists."""
    lists: dict[str, Any] = {}
    for view in views:
        for key, value in view.items():
            lists.setdefault(key, []).append(value)
    return lists


def average(outs: dict[str, Any], keys: Iterable[str]) -> None:
    """Replace the lists of numbers at `keys` by their means, in place."""
    for key in keys:
        outs[key] = sum(outs[key]) / len(outs[key])
