# SPDX-License-Identifier: MIT
"""What the logged quantities are: which are a method's own loss, a classifier's, an accuracy."""

from __future__ import annotations

from collections.abc import Iterable

#: of linear classifiers, whose gradient does not reach a pretrained encoder
CLASS_LOSSES = (
    "train_class_loss",
    "train_momentum_class_loss",
    "train_loss",
    "val_loss",
    "momentum_val_loss",
)
#: accuracies in per cent, the ones that say most first, by what a line calls them
ACCURACIES = {
    "val_acc1": "accuracy",
    "val_knn_acc1": "kNN",
    "momentum_val_acc1": "momentum accuracy",
    "val_map": "mean average precision",
}
#: losses whose name does not say so: BYOL, SimSiam and their variants with neighbours
_OTHER_LOSSES = ("train_neg_cos_sim",)


def own_losses(names: Iterable[str]) -> list[str]:
    """The self-supervised losses among logged names (without `_step`, `_epoch`), in their order.

    What an extension adds (`gating/...`) is not among them.
    """
    return [
        name
        for name in names
        if ("loss" in name or name in _OTHER_LOSSES)
        and name not in CLASS_LOSSES
        and "/" not in name
    ]


def training_loss(names: Iterable[str]) -> str | None:
    """The loss that a run is about: its own first one, else the classifier's; None without one."""
    names = list(names)
    classifiers = [name for name in CLASS_LOSSES if name in names]
    return next(iter([*own_losses(names), *classifiers]), None)


def words(name: str) -> str:
    """A loss's name as a text has it: `train_nce_loss` is `nce loss`."""
    return name.removeprefix("train_").replace("_", " ")
