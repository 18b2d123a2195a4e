# SPDX-License-Identifier: MIT
"""Folders of images for a table: where they are, and a fixed part of them for small runs."""

from __future__ import annotations

import os
from pathlib import Path

from solo.errors import DataError


def require(folder: Path) -> Path:
    """`folder` if it holds `train/<class>/<image>` and `val/<class>/<image>`.

    Raises:
        DataError: it does not.
    """
    for part in ("train", "val"):
        if not any((folder / part).glob("*/*")):
            raise DataError(f"--data: {folder / part} holds no <class>/<image>; give its parent.")
    return folder.resolve()


def subset(folder: Path, target: Path, images: int) -> Path:
    """A folder with the first `images` of the training images, equally many of each class.

    Made of links; `val` is all of it. Made once: a later call finds it.

    Raises:
        DataError: a class has too few images.
    """
    classes = sorted(path for path in (folder / "train").iterdir() if path.is_dir())
    each = images // len(classes)
    for one in classes:
        names = sorted(path.name for path in one.iterdir())[:each]
        if len(names) < each:
            raise DataError(f"--data: {one} has {len(names)} images, {each} are needed.")
        (target / "train" / one.name).mkdir(parents=True, exist_ok=True)
        for name in names:
            _link(one / name, target / "train" / one.name / name)
    _link(folder / "val", target / "val")
    return target


def _link(source: Path, link: Path) -> None:
    if not link.is_symlink():
        os.symlink(source, link)
