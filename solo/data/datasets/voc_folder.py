# SPDX-License-Identifier: MIT
"""Where the VOC 2007 development kit keeps its image lists. Importing this loads no torch."""

from __future__ import annotations

from pathlib import Path

from solo.errors import DataError

YEAR = "VOC2007"


def year_folder(root: str | Path) -> Path:
    """`VOC2007` itself, from that folder or one of the two above it.

    Raises:
        DataError: `root` is none of the three.
    """
    root = Path(root)
    for folder in (root, root / YEAR, root / "VOCdevkit" / YEAR):
        if (folder / "ImageSets" / "Main").is_dir():
            return folder
    raise DataError(
        f"'{root}' is no VOC 2007 folder: expected ImageSets/Main in it, in {YEAR} or in "
        f"VOCdevkit/{YEAR} below it"
    )


def class_lists(root: str | Path, split: str) -> dict[str, Path]:
    """The files `ImageSets/Main/<class>_<split>.txt` by class, sorted by its name.

    Raises:
        DataError: there is none.
    """
    lists = year_folder(root) / "ImageSets" / "Main"
    files = {f.name.removesuffix(f"_{split}.txt"): f for f in lists.glob(f"*_{split}.txt")}
    if not files:
        raise DataError(f"{lists}: no <class>_{split}.txt; is this VOC 2007's {split} set?")
    return dict(sorted(files.items()))
