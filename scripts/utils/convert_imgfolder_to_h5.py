# SPDX-License-Identifier: MIT
"""Pack an image folder (`<class>/<image>`) into one HDF5 file for `data.format=h5`.

python3 scripts/utils/convert_imgfolder_to_h5.py --folder_path imagenet100/train --h5_path train.h5
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Container
from itertools import chain, count
from pathlib import Path


def convert_imgfolder_to_h5(folder_path: str | Path, h5_path: str | Path) -> None:
    """Write a group per class and in it a dataset per image: the file's bytes, uint8, gzip 9.

    The file appears under its name only once it is complete.

    Args:
        folder_path: image folder with one sub-folder per class.
        h5_path: file to write.

    Raises:
        DataError: the folder is missing or holds no images, or `h5_path` exists already.
    """
    import h5py
    import numpy as np
    from tqdm import tqdm

    from solo.data.datasets.folders import image_folder
    from solo.errors import DataError
    from solo.files.whole import whole_file

    target = Path(h5_path)
    if target.exists():
        raise DataError(f"--h5_path: '{target}' exists already; move it away first.")
    images = image_folder(folder_path, None, "--folder_path")
    with whole_file(target) as partial, h5py.File(partial, "w") as file:
        for name, label in tqdm(images.imgs, desc=str(target)):
            parts = Path(name).relative_to(folder_path).parts[1:]
            group = file.require_group(images.classes[label])
            group.create_dataset(
                _free("_".join(parts), group),
                data=np.fromfile(name, dtype=np.uint8),
                compression="gzip",
                compression_opts=9,
            )


def _free(name: str, taken: Container[str]) -> str:
    """`name`, or with a number where another image (a/b_c.jpg, a_b/c.jpg) has it already."""
    stem, dot, suffix = name.rpartition(".")
    names = chain([name], (f"{stem}-{number}{dot}{suffix}" for number in count(1)))
    return next(candidate for candidate in names if candidate not in taken)


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder_path", type=str, required=True, help="image folder to read")
    parser.add_argument("--h5_path", type=str, required=True, help="HDF5 file to write")
    args = parser.parse_args()
    from solo.programs.app import exit_code

    return exit_code(lambda: convert_imgfolder_to_h5(args.folder_path, args.h5_path))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    sys.exit(main())
