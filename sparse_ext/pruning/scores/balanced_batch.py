# SPDX-License-Identifier: MIT
"""Batches as trees of tensors, and a batch with as many samples of every class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from solo.errors import ConfigError
from sparse_ext.compat import tree_leaves, tree_map


def is_rows(leaf: Any) -> bool:
    """Whether a leaf of a batch has one row per sample."""
    return isinstance(leaf, Tensor) and leaf.dim() > 0


def size(batch: Any) -> int:
    """Number of samples in a batch."""
    return min((len(leaf) for leaf in tree_leaves(batch) if is_rows(leaf)), default=0)


def rows(batch: Any, part: slice | Tensor) -> Any:
    """The samples of a batch at the given places, as a batch."""
    return tree_map(lambda leaf: leaf[part] if is_rows(leaf) else leaf, batch)


def balanced(loader: Any, count: int, classes: int, seed: int) -> Any:
    """`count` samples of each class, drawn at random from the data of a loader.

    In rounds of one sample of each class, so that contiguous parts are balanced as well.

    Args:
        loader: a DataLoader over a data set with an index; nothing in it is changed.
        count: samples of each class.
        classes: their number; labels are 0 to classes - 1.
        seed: of the draw.

    Raises:
        ConfigError: for another kind of loader, batches without labels, or too few samples.
    """
    left = dict.fromkeys(range(classes), count)
    found, labels = [], []
    for batch in _shuffled(loader, seed):
        mine = _labels(batch, classes)
        chosen = [i for i, label in enumerate(mine) if _take(left, label)]
        found.append(rows(batch, torch.tensor(chosen, dtype=torch.long)))
        labels += [mine[i] for i in chosen]
        if not any(left.values()):
            break
    short = [label for label, missing in left.items() if missing]
    if short or not classes:
        raise ConfigError(
            f"sparse.samples_per_class={count}: of {classes} classes, {len(short)} have fewer "
            f"samples in the training data (class {short[0] if short else None} among them). "
            f"Lower it, or set it to 0 to score the first batch."
        )
    whole = tree_map(lambda *parts: torch.cat(parts) if is_rows(parts[0]) else parts[0], *found)
    by_class = torch.tensor(labels).argsort(stable=True).view(classes, count)
    return rows(whole, by_class.T.reshape(-1))


def _take(left: dict[int, int], label: int) -> bool:
    wanted = left[label] > 0
    left[label] -= wanted
    return wanted


def _shuffled(loader: Any, seed: int) -> DataLoader:
    """A loader of its own over the same data, so that the run's has its next batch unchanged."""
    data = getattr(loader, "dataset", None)
    if not isinstance(loader, DataLoader) or isinstance(data, IterableDataset):
        raise ConfigError(
            f"sparse.samples_per_class draws samples by their index, which a "
            f"{type(loader).__name__} does not offer. Set it to 0 to score the first batch."
        )
    return DataLoader(
        data,  # type: ignore[arg-type]
        batch_size=loader.batch_size or 1,
        shuffle=True,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        generator=torch.Generator().manual_seed(seed),
    )


def _labels(batch: Any, classes: int) -> list[int]:
    """The last vector of whole numbers in a batch."""
    vectors = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.dim() == 1]
    whole = [leaf for leaf in vectors if not (leaf.is_floating_point() or leaf.is_complex())]
    labels = whole[-1].tolist() if whole else [-1]
    if min(labels) < 0 or max(labels) >= classes:
        raise ConfigError(
            f"sparse.samples_per_class: batches hold no labels from 0 to {classes - 1}, one for "
            f"each output of sparse.head. Set it to 0 to score the first batch."
        )
    return labels
