# SPDX-License-Identifier: MIT
"""What lies where in WebDataset shards: tar files whose members `<key>.jpg` and `<key>.cls` are a
sample. Needs no torch.

The headers are read once; the index then lies beside the shards, so that every process of every
run knows all samples, their labels and their places without reading the shards.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import groupby
from pathlib import Path

import numpy as np

from solo.data.shards.stored_index import fingerprint, read_index, write_index
from solo.errors import DataError
from solo.monitoring.console import bar

IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "ppm", "pgm", "tif", "tiff", "npy")
LABEL = "cls"
LIST = "index.json"  # what a converter writes beside shards: their names, sizes and classes
MAKE = "scripts/utils/convert_imgfolder_to_shards.py makes shards from an image folder."


@dataclass(frozen=True)
class ShardIndex:
    """All samples of a set of shards, in the order of the shards' names.

    Attributes:
        shards: the tar files.
        places: (N, 3) int64: number of the shard, first byte of the image, its bytes.
        labels: (N,) int64, None where there are none.
        classes: names of the labels, None where nothing says so.
    """

    shards: list[Path]
    places: np.ndarray
    labels: np.ndarray | None
    classes: list[str] | None

    @property
    def num_classes(self) -> int:
        """How many classes there are at least; 1 without labels."""
        if self.classes is not None:
            return len(self.classes)
        return 1 if self.labels is None else int(self.labels.max()) + 1


def read_shards(path: str | Path, key: str) -> ShardIndex:
    """Read the index of the samples of all shards in a folder.

    Args:
        path: folder with `*.tar`, or a pattern such as `imagenet/train-*.tar`.
        key: configuration key that holds it, for messages.

    Raises:
        DataError: there are no shards, some are missing or broken, or a sample has no image, an
            odd label, or none where others have one.
    """
    shards = _files(Path(path), key)
    listed, classes = _listed(Path(path), shards, key)
    mark = fingerprint("shards", shards)
    lines = read_index(path, mark)
    if lines is None:
        lines = _scanned(shards, listed, key)
        write_index(path, mark, lines)
    table = np.fromstring(" ".join(lines), dtype=np.int64, sep=" ").reshape(-1, 4)
    labels = None if (table[:, 3] < 0).all() else table[:, 3].copy()
    return ShardIndex(shards, table[:, :3].copy(), labels, classes if labels is not None else None)


def _files(path: Path, key: str) -> list[Path]:
    folder, pattern = (path, "*.tar") if path.is_dir() else (path.parent, path.name)
    found = sorted(p for p in folder.glob(pattern) if p.suffix == ".tar" and p.is_file())
    if found:
        return found
    if not folder.is_dir():
        raise DataError(f"{key}: there is no folder '{folder}' (from {Path.cwd()}).")
    packed = [p.name for p in folder.glob(pattern + ("*" if path.is_dir() else ""))]
    if packed:
        hint = f"'{sorted(packed)[0]}' is no plain .tar file: unpack compressed shards first."
    else:
        hint = f"data.format=webdataset needs tar files there. {MAKE}"
    raise DataError(f"{key}: no shards match '{folder / pattern}'. {hint}")


def _listed(path: Path, shards: list[Path], key: str) -> tuple[dict[str, int], list[str] | None]:
    """Samples of each shard and class names, where a list beside the shards says so."""
    folder, pattern = (path, "*") if path.is_dir() else (path.parent, path.name)
    try:
        stored = json.loads((folder / LIST).read_text(encoding="utf-8"))
        listed = {entry["url"]: int(entry["nsamples"]) for entry in stored["shardlist"]}
    except FileNotFoundError:
        return {}, None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{key}: '{folder / LIST}' is no list of shards ({error!r}).") from None
    listed = {name: n for name, n in listed.items() if fnmatch(name, pattern)}
    missing = sorted(set(listed) - {shard.name for shard in shards})
    if missing:
        raise DataError(
            f"{key}: {len(missing)} of {len(listed)} shards are missing in '{folder}', the first "
            f"is '{missing[0]}' (from '{LIST}'). Copy them again; to go on without them delete "
            f"'{folder / LIST}'."
        )
    return listed, stored.get("classes")


def _scanned(shards: list[Path], listed: dict[str, int], key: str) -> list[str]:
    """Lines `shard first size label` of all samples; label -1 where there is none."""
    lines: list[str] = []
    unlabelled, labelled = None, False
    for number, shard in enumerate(bar(shards, "index of shards")):
        before = len(lines)
        for name, first, size, label in _samples(shard, key):
            lines.append(f"{number} {first} {size} {label}")
            labelled = labelled or label >= 0
            unlabelled = unlabelled or (f"'{name}' in '{shard}'" if label < 0 else None)
        count = len(lines) - before
        if listed.get(shard.name, count) != count:
            raise DataError(
                f"{key}: '{shard}' has {count} samples, but '{LIST}' says {listed[shard.name]}: "
                "it is broken. Copy it again."
            )
    if not lines:
        raise DataError(f"{key}: the shards hold no samples, '{shards[0]}' is empty. {MAKE}")
    if labelled and unlabelled:
        raise DataError(
            f"{key}: sample {unlabelled} has no label ('.{LABEL}'), but other samples have one."
        )
    return lines


def _samples(shard: Path, key: str) -> Iterator[tuple[str, int, int, int]]:
    """Name, first byte, size and label of every sample of a shard."""
    try:
        with tarfile.open(shard, "r:") as tar:
            members = (m for m in tar if m.isfile() and not _hidden(m.name))
            for name, group in groupby(members, lambda member: _parts(member.name)[0]):
                fields = {_parts(member.name)[1]: member for member in group}
                image = fields[_image_of(fields, name, shard, key)]
                label = _label_of(tar, fields.get(LABEL), shard, key)
                yield name, image.offset_data, image.size, label
            # Behind the last member lies a block of zeros, unless something cut the file off.
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                raise tarfile.ReadError("unexpected end of data")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(
            f"{key}: shard '{shard}' is truncated or no tar file ({error}). Copy it again."
        ) from None


def _hidden(name: str) -> bool:
    return any(part.startswith(".") and part != "." for part in name.split("/"))


def _parts(name: str) -> tuple[str, str]:
    """Key and field of a member: `a/b.c.jpg` is field `c.jpg` of `a/b`."""
    folder, slash, base = name.rpartition("/")
    stem, _, field = base.partition(".")
    return folder + slash + stem, field.lower()


def _image_of(fields: dict, name: str, shard: Path, key: str) -> str:
    images = [field for field in fields if field.rpartition(".")[2] in IMAGES]
    if len(images) == 1:
        return images[0]
    count = "no image" if not images else f"{len(images)} images"
    found = ", ".join(f".{field}" for field in fields)
    raise DataError(
        f"{key}: sample '{name}' in '{shard}' has {count}: found {found}, one of "
        f".{', .'.join(IMAGES)} is needed."
    )


def _label_of(tar: tarfile.TarFile, member: tarfile.TarInfo | None, shard: Path, key: str) -> int:
    if member is None:
        return -1
    file = tar.extractfile(member)
    text = file.read().decode("ascii", "replace").strip() if file else ""
    if not text.isdecimal():
        raise DataError(
            f"{key}: '{member.name}' in '{shard}' holds '{text[:40]}', a label must be a whole "
            "number from 0 up."
        )
    return int(text)
