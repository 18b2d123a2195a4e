# SPDX-License-Identifier: MIT
"""Decoded images of earlier runs, kept in the cache folder and mapped into memory.

A file counts as unchanged if its size and both of its times are, or else if its content is. What
has changed is decoded again, and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import PIL
from torch.utils.data import Dataset

from solo.data.datasets.images import read_image
from solo.errors import OutputError
from solo.files.whole import whole_file

VERSION = 1
SMALLEST = 8_000_000  # bytes of decoded images from which on they are kept
ROOM = 2  # times their size that has to be free on the disk
_IMAGES, _INDEX = "images.npy", "index.npz"


def cache_folder() -> Path:
    """Where decoded images are kept; deleting it costs time only."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "solo-learn-sparse" / "decoded"


class Stored:
    """The decoded images of one list of files under one way of reading them.

    Args:
        files: in the order of the data set.
        reading: what else the pixels depend on.
        threads: that look at files.
    """

    def __init__(self, files: Sequence[str], reading: Mapping[str, Any], threads: int = 1) -> None:
        self.files, self.threads = list(files), max(1, threads)
        text = json.dumps([VERSION, PIL.__version__, reading, self.files], default=str)
        self.folder = cache_folder() / hashlib.sha256(text.encode()).hexdigest()[:32]
        self._digests: dict[int, bytes] = {}

    @classmethod
    def of(cls, dataset: Dataset, size: int | None, threads: int) -> Stored | None:
        """That of a data set of image files; None for any other, whose images nothing is known of.

        Args:
            dataset: from `prepare_datasets`.
            size: side to which its images are brought.
            threads: that look at files.
        """
        loader = getattr(dataset, "loader", None)
        if not isinstance(loader, partial) or loader.func is not read_image or loader.args:
            return None
        samples, images = (getattr(dataset, name, None) for name in ("samples", "images"))
        if isinstance(samples, list):
            files = [os.path.abspath(file) for file, *_ in samples]
        elif isinstance(images, list) and hasattr(dataset, "root"):
            files = [os.path.abspath(os.path.join(dataset.root, name)) for name in images]
        else:
            return None
        return cls(files, {"size": size, **loader.keywords}, threads)

    def load(self) -> tuple[np.ndarray, list[int], dict[int, str]] | None:
        """What is kept: (images (N, 3, H, W) uint8, mapped into memory; positions of files that
        have changed since; message of every file that is broken). None if nothing is."""
        try:
            with np.load(self.folder / _INDEX) as index:
                stamps, digests = index["stamps"], index["digests"]
                broken = {int(k): v for k, v in json.loads(str(index["broken"])).items()}
                pair = tuple(index["pair"])
            images = np.load(self.folder / _IMAGES, mmap_mode="c")
            if pair != _stamp(self.folder / _IMAGES)[:2] or len(images) != len(self.files):
                return None
            now = np.array([_stamp(file) for file in self.files])
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            return None
        if stamps.shape != now.shape or digests.shape != (len(now), 16):
            return None
        moved = [int(i) for i in np.flatnonzero((stamps != now).any(axis=1))]
        for position, digest in zip(moved, self._contents(moved), strict=True):
            self._digests[position] = digest
        changed = [i for i in moved if self._digests[i] != digests[i].tobytes()]
        self._digests |= {i: digests[i].tobytes() for i in {*range(len(now))} - {*moved}}
        if moved and not changed:
            self._write_index(broken)
        return images, changed, broken

    def save(self, images: np.ndarray, broken: Mapping[int, str]) -> Path | None:
        """Keep decoded images; without room for them, or a folder to write to, none are kept.

        Args:
            images: (N, 3, H, W) uint8, one row per file; those of broken files mean nothing.
            broken: message of every broken file.

        Returns:
            the folder, None where nothing is kept.
        """
        if images.nbytes < SMALLEST:
            return None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(self.folder).free < ROOM * images.nbytes:
                return None
            with whole_file(self.folder / _IMAGES) as part, part.open("wb") as file:
                np.save(file, images)
            self._write_index(broken)
        except (OSError, OutputError):
            return None
        return self.folder

    def _write_index(self, broken: Mapping[int, str]) -> None:
        unknown = [i for i in range(len(self.files)) if i not in self._digests]
        self._digests |= zip(unknown, self._contents(unknown), strict=True)
        digests = b"".join(self._digests[i] for i in range(len(self.files)))
        try:
            with whole_file(self.folder / _INDEX) as part, part.open("wb") as file:
                np.savez(
                    file,
                    stamps=np.array([_stamp(file) for file in self.files]),
                    digests=np.frombuffer(digests, np.uint8).reshape(-1, 16),
                    broken=json.dumps({str(k): v for k, v in broken.items()}),
                    pair=np.array(_stamp(self.folder / _IMAGES)[:2]),
                )
        except (OSError, OutputError):  # the next run looks at the contents again
            return

    def forget(self, positions: Sequence[int]) -> None:
        """What is known of the contents of these files, since they are read again."""
        for position in positions:
            self._digests.pop(position, None)

    def _contents(self, positions: Sequence[int]) -> list[bytes]:
        with ThreadPoolExecutor(self.threads) as pool:
            return list(pool.map(lambda i: _digest(self.files[i]), positions))


def _stamp(file: str | Path) -> tuple[int, int, int]:
    """Size, and the times at which content and inode changed; the last cannot be set by hand."""
    stat = os.stat(file)
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _digest(file: str) -> bytes:
    try:
        with open(file, "rb") as opened:
            return hashlib.blake2b(opened.read(), digest_size=16).digest()
    except OSError:
        return bytes(16)
