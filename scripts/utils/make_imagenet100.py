# SPDX-License-Identifier: MIT
"""Make ImageNet-100 out of ImageNet: links to the folders of its 100 classes, nothing is copied.

python3 scripts/utils/make_imagenet100.py /data/imagenet /data/imagenet100
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

SUBSET = Path("solo", "data", "dataset_subset", "imagenet100_classes.txt")
ROOT = Path(__file__).resolve().parents[2]


def make_imagenet100(full_imagenet: str | Path, imagenet100_out: str | Path) -> None:
    """Link the 100 class folders of `train` and `val` into a new folder.

    A second call changes nothing; links of an interrupted call are completed.

    Args:
        full_imagenet: folder with `train/<wnid>` and `val/<wnid>`.
        imagenet100_out: folder to fill.

    Raises:
        DataError: a class folder is missing, or something else lies where a link belongs.
    """
    from solo.errors import DataError

    classes = (ROOT / SUBSET).read_text(encoding="utf-8").split()
    source, target = Path(full_imagenet).resolve(), Path(imagenet100_out)
    folders = [(split, name) for split in ("train", "val") for name in classes]
    missing = [f"{split}/{name}" for split, name in folders if not (source / split / name).is_dir()]
    if missing:
        raise DataError(
            f"'{source}' lacks {len(missing)} of the 200 class folders, first '{missing[0]}'. "
            "Expected train/<wnid>/<image> and val/<wnid>/<image>."
        )
    for split, name in folders:
        link = target / split / name
        link.parent.mkdir(parents=True, exist_ok=True)
        if link.is_symlink() and Path(os.readlink(link)) == source / split / name:
            continue
        if link.is_symlink() or link.exists():
            raise DataError(f"'{link}' exists already and is no link to '{source}'.")
        link.symlink_to(source / split / name, target_is_directory=True)


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("full_imagenet", help="folder with train and val of ImageNet")
    parser.add_argument("imagenet100_out", help="folder to make")
    args = parser.parse_args()
    from solo.programs.app import exit_code

    return exit_code(lambda: make_imagenet100(args.full_imagenet, args.imagenet100_out))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
