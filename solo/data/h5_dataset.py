# SPDX-License-Identifier: MIT
"""Images of one HDF5 file: a group per class, in it a dataset per image with its encoded bytes.

As with folders, images may lie at any depth below their class, and hidden names do not count.

`scripts/utils/convert_imgfolder_to_h5.py` writes such files.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS

from solo.data.catalogue import formats_of, info_of
from solo.data.datasets.folders import ARRAYS
from solo.data.datasets.images import ReadError, decode_image
from solo.data.shards.stored_index import fingerprint, read_index, write_index
from solo.errors import ConfigError, DataError, did_you_mean

_SUBSETS = Path(__file__).parent / "dataset_subset"


def imagenet100_classes() -> list[str]:
    """The 100 WordNet ids of ImageNet-100, sorted."""
    return _names_in(_SUBSETS / "imagenet100_classes.txt")


def _names_in(file: Path) -> list[str]:
    return sorted(file.read_text(encoding="utf-8").split())


class H5Dataset(Dataset):
    """Items `(image, label)` of an HDF5 file; labels are positions in the sorted class names.

    Args:
        dataset: its name; one that is a subset of others keeps only its own classes.
        h5_path: the file.
        transform: applied to the image.
        key: configuration key that holds `h5_path`, for messages.
        decode: from bytes and a name to an image, `decode_image` or `decode_pixels`.

    Attributes:
        classes: sorted class names.
        class_to_idx: class name to label.
        h5_file: the open file, opened once per process on first use.

    Raises:
        ConfigError: another dataset name.
        DataError: the file is missing, truncated, no HDF5 file, or has no images.
        ReadError: while iterating: an image in it is broken.
    """

    def __init__(
        self,
        dataset: str,
        h5_path: str | Path,
        transform: Callable | None = None,
        key: str = "data.train_path",
        decode: Callable = decode_image,
    ):
        names = formats_of("h5")
        if dataset not in names:
            raise ConfigError(
                f"data.format=h5 does not go with data.dataset='{dataset}'. "
                f"{did_you_mean(dataset, names)}"
            )
        self.decode = decode
        self.dataset, self.h5_path, self.transform, self.key = dataset, h5_path, transform, key
        self._handle: tuple[int, h5py.File] | None = None
        self._load_h5_data_info()

    @property
    def h5_file(self) -> h5py.File:
        """The open file of this process: a handle must not be shared across a fork."""
        if self._handle is None or self._handle[0] != os.getpid():
            self._handle = os.getpid(), _open(self.h5_path, self.key)
        return self._handle[1]

    def _load_h5_data_info(self) -> None:
        """Fill `_data`, `classes` and `class_to_idx` from the index cache or else the file."""
        mark = fingerprint("an H5 file", [self.h5_path]) if os.path.isfile(self.h5_path) else ""
        lines = read_index(self.h5_path, mark)
        names = None if lines is None else [tuple(line.split("/", 1)) for line in lines]
        if names is None:
            with _open(self.h5_path, self.key) as file:
                names = [(c, name) for c in self._find_classes(file) for name in _images(file[c])]
            if not names:
                raise DataError(f"{self.key}: '{self.h5_path}' has no class group with images.")
            write_index(self.h5_path, mark, (f"{c}/{image}" for c, image in names))
        kept = self._kept_classes({class_name for class_name, _ in names})
        self.classes = sorted(kept)
        self.class_to_idx = {name: label for label, name in enumerate(self.classes)}
        self._data = [(c, image, self.class_to_idx[c]) for c, image in names if c in kept]

    def _find_classes(self, h5_file: h5py.File) -> list[str]:
        """All class groups of the file, sorted; hidden ones are none."""
        return sorted(
            name
            for name in h5_file
            if not name.startswith(".") and isinstance(h5_file[name], h5py.Group)
        )

    def _kept_classes(self, classes: set[str]) -> set[str]:
        info = info_of(self.dataset)
        if info.subset is None:
            return classes
        kept = classes & set(_names_in(_SUBSETS / info.subset))  # an absolute path stays itself
        if not kept:
            warnings.warn(f"'{self.h5_path}' has no class of {info.name}; using all its classes.")
        return kept or classes

    def _load_img(self, class_name: str, img: str) -> Any:
        """The image `img` of a class."""
        name = f"{self.h5_path}:/{class_name}/{img}"
        try:
            encoded = self.h5_file[class_name][img][()]
        except (OSError, KeyError) as error:
            raise ReadError(f"Cannot read image '{name}': {error}. Write the file anew.") from error
        return self.decode(encoded.tobytes(), name)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        class_name, img, label = self._data[index]
        image = self._load_img(class_name, img)
        return (self.transform(image) if self.transform else image), label

    def __len__(self) -> int:
        return len(self._data)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None}


def _images(group: h5py.Group) -> Iterator[str]:
    """Names of the images at any depth below a group; what is hidden does not count."""
    for name in group:
        if name.startswith("."):
            continue
        # looking at what an object is would take minutes for millions of images
        if (
            name.lower().endswith((*IMG_EXTENSIONS, ARRAYS))
            or group.get(name, getclass=True) != h5py.Group
        ):
            yield name
        else:
            yield from (f"{name}/{inner}" for inner in _images(group[name]))


def _open(path: str | Path, key: str) -> h5py.File:
    if not Path(path).is_file():
        kind = "a folder" if Path(path).is_dir() else "missing"
        raise DataError(f"{key}: '{path}' is {kind}; data.format=h5 needs one HDF5 file.")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"{key}: '{path}' is truncated or no HDF5 file ({error}).") from None
