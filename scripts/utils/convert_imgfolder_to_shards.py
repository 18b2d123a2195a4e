# SPDX-License-Identifier: MIT
"""Pack an image folder into tar files for `data.format=webdataset`.

python3 scripts/utils/convert_imgfolder_to_shards.py --folder_path train --shards_path shards/train
"""

from __future__ import annotations

import argparse
import io
import os
import random
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path

SEED = 0  # of the order: a shard should hold images of many classes


def convert_imgfolder_to_shards(
    folder_path: str | Path,
    shards_path: str | Path,
    shard_size: int = 1000,
    no_labels: bool = False,
) -> list[Path]:
    """Write `shard-000000.tar`, ...: for each image its file and, beside it, `.cls` with the label.

    The images come in a fixed random order. `index.json` names the shards, their sizes and the
    classes; it is written last, so that an interrupted conversion is seen.

    Args:
        folder_path: image folder with one sub-folder per class.
        shards_path: new or empty folder.
        shard_size: images per shard.
        no_labels: the images lie directly in `folder_path`, and have no labels.

    Returns:
        The shards.

    Raises:
        DataError: the folder is missing or holds no images, or there are shards already.
    """
    from tqdm import tqdm

    from solo.data.shards.index import LIST, read_shards
    from solo.errors import DataError
    from solo.files.whole import write_json

    images, classes = _images(folder_path, no_labels)
    random.Random(SEED).shuffle(images)
    target = Path(shards_path)
    target.mkdir(parents=True, exist_ok=True)
    if any(target.glob("*.tar")):
        raise DataError(f"--shards_path: '{target}' holds shards already; move them away first.")
    parts = [images[i : i + shard_size] for i in range(0, len(images), shard_size)]
    listed, shards = [], []
    for number, part in enumerate(tqdm(parts, desc=str(target))):
        shards.append(target / f"shard-{number:06d}.tar")
        _write_shard(shards[-1], part, number * shard_size)
        listed.append({"url": shards[-1].name, "nsamples": len(part)})
    stored = {"wids_version": 1, "shardlist": listed, "classes": classes}
    write_json(target / LIST, stored)
    read_shards(target, "--shards_path")  # leaves the index beside them
    return shards


def _images(folder: str | Path, no_labels: bool) -> tuple[list[tuple[str, int]], list[str] | None]:
    """Files with their labels, and the names of the classes."""
    from solo.data.datasets.folders import image_files, image_folder, require_folder
    from solo.errors import DataError

    if not no_labels:
        found = image_folder(folder, None, "--folder_path")
        return list(found.imgs), found.classes
    files = image_files(require_folder(folder, "--folder_path"))
    if not files:
        raise DataError(f"--folder_path: there are no images directly in '{folder}'.")
    return [(str(Path(folder) / name), -1) for name in files], None


def _write_shard(path: Path, images: Iterable[tuple[str, int]], first: int) -> None:
    """The shard appears under its name only once it is complete."""
    from solo.files.whole import whole_file

    with (
        whole_file(path) as partial,
        tarfile.open(partial, "w", format=tarfile.GNU_FORMAT) as tar,
    ):
        for number, (name, label) in enumerate(images, start=first):
            stem, suffix = os.path.splitext(os.path.basename(name))
            key = f"{number:09d}_{stem.replace('.', '_')}"
            _add(tar, f"{key}{suffix.lower()}", Path(name).read_bytes())
            if label >= 0:
                _add(tar, f"{key}.cls", str(label).encode())


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder_path", required=True, help="image folder to read")
    parser.add_argument("--shards_path", required=True, help="folder to write")
    parser.add_argument("--shard_size", type=int, default=1000, help="images per shard")
    parser.add_argument("--no_labels", action="store_true", help="images lie in no class folders")
    args = parser.parse_args()
    if args.shard_size < 1:
        parser.error("--shard_size must be positive")
    from solo.programs.app import exit_code

    return exit_code(
        lambda: convert_imgfolder_to_shards(
            args.folder_path, args.shards_path, args.shard_size, args.no_labels
        )
    )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    sys.exit(main())
