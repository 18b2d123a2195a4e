# SPDX-License-Identifier: MIT
"""How a folder of a user's own images is laid out: where training and validation images lie, and
whether folders are classes. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from solo.data.datasets.folders import (
    class_files,
    class_folders,
    image_files,
    images_below,
    require_folder,
)
from solo.errors import DataError

TRAIN = ("train", "training")
VAL = ("val", "valid", "validation", "test", "testing")


@dataclass(frozen=True)
class Layout:
    """Where the images of a folder lie.

    Attributes:
        train: folder of the training images.
        val: folder of labelled validation images; None where there is none.
        labelled: the folders inside `train` are classes.
        classes: how many; 0 without labels.
        largest: images of the largest class.
        files: of the training images, sorted as the data set has them.
        left_out: what lies there and is not used, one sentence each.
    """

    train: Path
    val: Path | None
    labelled: bool
    classes: int
    largest: int
    files: list[Path]
    left_out: tuple[str, ...] = ()


def layout_of(folder: str | Path, key: str = "data.path", labelled: bool | None = None) -> Layout:
    """Look at a folder of images.

    Understands `train/` and `val/` (also `valid`, `validation`, `test`; Tiny-ImageNet's flat `val`
    with its annotations), `<class>/<image>` at any depth below the class, one flat folder, and any
    of these inside a folder that holds nothing else. Two folders with images are classes; a single
    one is none.

    Args:
        folder: its path.
        key: configuration key that holds it, for messages.
        labelled: False takes folders for mere folders; None looks.

    Raises:
        DataError: there is no such folder, or no image in it.
    """
    top = _unwrapped(require_folder(folder, key))
    named = {entry.name.lower(): entry for entry in sorted(top.iterdir()) if entry.is_dir()}
    train = next((named[name] for name in TRAIN if name in named), None)
    if train is None:
        return _of_images(top, None, key, labelled)
    val = next((named[name] for name in VAL if name in named), None)
    return _of_images(_unwrapped(train), val, key, labelled)


def _unwrapped(folder: Path) -> Path:
    """`folder`, or the only folder in it where it holds nothing else that is shown."""
    while True:
        shown = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
        if len(shown) != 1 or not shown[0].is_dir():
            return folder
        folder = shown[0]


def _of_images(folder: Path, val: Path | None, key: str, labelled: bool | None) -> Layout:
    loose = image_files(folder)
    found = {name: class_files(folder, name) for name in class_folders(folder)}
    full = {name: files for name, files in found.items() if files}
    empty = sorted(set(found) - set(full))
    if labelled is not False and len(full) > 1:
        if empty:
            raise DataError(
                f"{key}: the folders {', '.join(empty[:5])} of '{folder}' hold no images. Remove "
                "them, or set data.no_labels=True if folders are no classes here."
            )
        left = [f"{len(loose):,} images beside the class folders"] if loose else []
        usable = val if val is not None and class_folders(val) else None
        if val is not None and usable is None:
            left.append(f"'{val.name}', which has no class folders")
        files = [Path(file) for each in full.values() for file in each]
        largest = max(map(len, full.values()))
        return Layout(folder, usable, True, len(full), largest, files, tuple(left))
    files = [folder / name for name in loose] or images_below(folder)
    if not files:
        raise DataError(
            f"{key}: there are no images in '{folder}'. Expected <class>/<image>, train/ and val/ "
            "with class folders, or images without labels."
        )
    left = [f"{sum(map(len, full.values())):,} images in folders"] if loose and full else []
    if val is not None:
        left.append(f"'{val.name}', as there are no labels to validate")
    return Layout(folder, None, False, 0, 0, files, tuple(left))
