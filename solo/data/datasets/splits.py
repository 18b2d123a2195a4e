# SPDX-License-Identifier: MIT
"""Which images a fraction of a data set is: drawn once, kept as a file beside the run."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from solo.errors import ConfigError, DataError, did_you_mean
from solo.files.whole import write_json

FILE = "split.json"
SEED = 42  # solo-learn's; the same images whatever the run's own seed is
#: what a fraction of a data set can be a fraction of
FRACTION_OF = ("images", "classes")


@dataclass(frozen=True)
class Split:
    """A part of a data set: which images a run trains on.

    Attributes:
        fraction: that was asked for.
        of: `images` or `classes`, see `subset_indices`.
        total: images of the whole data set.
        checksum: of all its labels in order; 0 without labels.
        per_class: images of each label in the part.
        indices: positions of the part's images, in the order in which they were drawn.
    """

    fraction: float
    of: str
    total: int
    checksum: int
    per_class: dict[str, int]
    indices: list[int]

    def require(self, total: int, labels: Sequence[int] | None, fraction: float, of: str) -> None:
        """Check that this is a part of the data set with these labels.

        Raises:
            DataError: it is of another one.
        """
        if (self.total, self.checksum) != (total, _checksum(labels)):
            raise DataError(
                f"{FILE} beside the run that is continued is a part of {self.total:,} images with "
                f"other labels than the {total:,} in data.train_path: continue with the data that "
                f"the run began with, or start a new run with auto_resume.enabled=False."
            )
        if (self.fraction, self.of) != (fraction, of):
            raise DataError(
                f"{FILE} beside the run that is continued holds a fraction of {self.fraction} "
                f"({self.of}), but data.fraction={fraction} ({of}) is asked for."
            )

    def write(self, folder: Path) -> Path:
        """Write `split.json` into the folder of a run, at once or not at all."""
        return write_json(Path(folder) / FILE, {"seed": SEED, **vars(self)}, indent=None)


def read(folder: Path) -> Split | None:
    """The split beside a run; None where there is none.

    Raises:
        DataError: the file is damaged.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content.pop("seed")
        split = Split(**content)
        if not all(0 <= index < split.total for index in split.indices):
            raise ValueError("positions outside of the data set")
        return split
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged ({error}); a run without it draws it anew.") from error


def draw(total: int, labels: Sequence[int] | None, fraction: float, of: str = "images") -> Split:
    """A fixed random part of a data set.

    Raises:
        ConfigError: see `subset_indices`.
    """
    kept = [int(index) for index in subset_indices(total, labels, fraction, of)]
    counts = Counter() if labels is None else Counter(int(labels[index]) for index in kept)
    per_class = {str(label): counts[label] for label in sorted(counts)}
    return Split(fraction, of, total, _checksum(labels), per_class, kept)


def fraction_indices(n: int, labels: Sequence[int] | None, fraction: float) -> np.ndarray:
    """Positions of a fixed random part of `n` items, stratified by `labels` when given.

    Same draw as solo-learn: scikit-learn's `train_test_split` with `random_state=42`.

    Raises:
        ConfigError: the fraction cannot be drawn from so few items or classes.
    """
    from sklearn.model_selection import train_test_split

    try:
        kept, _ = train_test_split(
            np.arange(n), train_size=fraction, stratify=labels, random_state=SEED
        )
    except ValueError as error:
        raise ConfigError(f"data.fraction={fraction} cannot be drawn: {error}") from None
    return kept


def subset_indices(
    n: int, labels: Sequence[int] | None, fraction: float, of: str = "images"
) -> np.ndarray:
    """Positions of a fixed random part of `n` items.

    Args:
        n: number of items.
        labels: their labels, None where there are none.
        fraction: between 0 and 1.
        of: `images` takes that part of every class (`fraction_indices`), `classes` all images of
            that many classes (at least one).

    Raises:
        ConfigError: the fraction cannot be drawn, or `of` is unknown or needs labels.
    """
    if of not in FRACTION_OF:
        raise ConfigError(f"data.fraction_of: '{of}'. {did_you_mean(of, FRACTION_OF)}")
    if of == "images":
        return fraction_indices(n, labels, fraction)
    if labels is None:
        raise ConfigError("data.fraction_of=classes needs a data set with labels.")
    classes = np.unique(labels)
    count = max(1, round(fraction * len(classes)))
    chosen = np.random.default_rng(SEED).permutation(classes)[:count]
    return np.flatnonzero(np.isin(labels, chosen))


def _checksum(labels: Sequence[int] | None) -> int:
    return 0 if labels is None else zlib.crc32(np.asarray(labels, dtype="<i8").tobytes())


def of_data(data: Any) -> Split | None:
    """The split of what a run trains on: loaders, or a data module; None for all images."""
    source = data[0].dataset if isinstance(data, (tuple, list)) else data
    return getattr(source, "split", None)
