# SPDX-License-Identifier: MIT
"""Validation images taken from the training images, where a data set has no others.

Which they are depends on the names of the files alone, and a list of them lies beside the run.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch.utils.data import Dataset

from solo.data.datasets.folders import keep_items
from solo.errors import ConfigError, DataError
from solo.files.whole import write_json

FILE = "validation.json"


@dataclass
class Holdout:
    """The part of every class that validates and is not trained on.

    Attributes:
        fraction: that part; at least one image of a class that has two.
        listed: the files of an earlier run, relative to the folder; None draws them.
        names: what validates, once a data set has been divided.
    """

    fraction: float
    listed: frozenset[str] | None = None
    names: list[str] = field(default_factory=list)

    def keep(self, dataset: Dataset, part: str) -> Dataset:
        """Leave only one part of `dataset` in it, in place.

        Args:
            dataset: of `<root>/<class>/<image>` files (`samples` and `root`).
            part: `train` or `val`.

        Raises:
            ConfigError: the data set does not consist of labelled files, or nothing can be held
                out.
            DataError: none of the listed files is there.
        """
        samples, root = getattr(dataset, "samples", None), getattr(dataset, "root", None)
        if not isinstance(samples, list) or root is None:
            raise ConfigError(
                "data.val_fraction holds out images of class folders: this data set has none. Give "
                "data.val_path, or data.val_fraction=0."
            )
        names = [os.path.relpath(file, root).replace(os.sep, "/") for file, *_ in samples]
        chosen = self._chosen(names, [label for _, label in samples], root)
        self.names = sorted(names[i] for i in chosen)
        wanted = chosen if part == "val" else set(range(len(names))) - chosen
        return keep_items(dataset, sorted(wanted))

    def _chosen(self, names: Sequence[str], labels: Sequence[int], root: str) -> set[int]:
        if self.listed is None:
            chosen = held_out(names, labels, self.fraction)
            if not chosen:
                raise ConfigError(
                    f"data.val_fraction={self.fraction}: no class of '{root}' has two images, so "
                    "none can be held out. Set data.val_fraction=0."
                )
            return chosen
        chosen = {i for i, name in enumerate(names) if name in self.listed}
        if not chosen:
            raise DataError(
                f"none of the {len(self.listed):,} validation images that {FILE} beside the run "
                f"lists is in '{root}': give the folder that the run was trained on."
            )
        return chosen

    def write(self, folder: Path) -> Path:
        """Write the list into the folder of a run, at once or not at all."""
        content = {"fraction": self.fraction, "files": self.names}
        return write_json(Path(folder) / FILE, content, indent=None)


def held_out(names: Iterable[str], labels: Iterable[int], fraction: float) -> set[int]:
    """Positions of the images that validate: of each class those with the smallest hashes.

    A file that is added or removed later changes little: all others have the hashes they had.

    >>> sorted(held_out(["a/1.png", "a/2.png", "a/3.png", "b/1.png"], [0, 0, 0, 1], 0.34))
    [0]

    Args:
        names: of the files, relative to their folder, with slashes.
        labels: one for each.
        fraction: part of each class, rounded; at least one and never all.
    """
    classes = defaultdict(list)
    for position, (name, label) in enumerate(zip(names, labels, strict=True)):
        classes[label].append((hashlib.sha256(name.encode()).digest(), position))
    chosen: set[int] = set()
    for members in classes.values():
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        chosen |= {position for _, position in sorted(members)[:count]}
    return chosen


def read(folder: str | Path) -> Holdout | None:
    """What the run in `folder` held out; None where it has no list.

    Raises:
        DataError: the list is damaged.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Holdout(float(content["fraction"]), frozenset(map(str, content["files"])))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: damaged ({error}); without it the same images are drawn."
        ) from error
