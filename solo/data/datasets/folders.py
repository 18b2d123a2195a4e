# SPDX-License-Identifier: MIT
"""Where images come from: the named datasets, image folders, fractions of them, and their errors.

Shared by `pretrain_dataloader` and `classification_dataloader`. Every error that depends on
something the user typed names the configuration key that holds it (`key`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset
from torchvision import datasets as tv
from torchvision.datasets.folder import IMG_EXTENSIONS

from solo.data.catalogue import FOLDER_FORMATS, DatasetInfo
from solo.data.datasets.images import read_image
from solo.data.datasets.splits import Split, draw
from solo.errors import ConfigError, DataError, did_you_mean

DATA_FORMATS = FOLDER_FORMATS
ARRAYS = ".npy"
TINY = "val_annotations.txt"  # of Tiny-ImageNet


def default_data_path() -> Path:
    """`datasets` inside the package: where data goes when no path is given."""
    return Path(__file__).resolve().parents[2] / "datasets"


def require_format(data_format: str | None) -> str:
    """The data format, `image_folder` when none is given.

    Raises:
        ConfigError: it is unknown; the message has the nearest name.
    """
    data_format = data_format or "image_folder"
    if data_format not in DATA_FORMATS:
        raise ConfigError(
            f"data.format: '{data_format}' is unknown. {did_you_mean(data_format, DATA_FORMATS)}"
        )
    return data_format


def stored_format(data_format: str, path: str | os.PathLike | None) -> str:
    """How the images at `path` lie on disk: `image_folder`, `h5` or `webdataset`.

    `dali` and `resident` are ways to load them: both read folders, `resident` a file of format h5
    as well.
    """
    if data_format == "resident" and path is not None and Path(path).is_file():
        return "h5"
    return "image_folder" if data_format in ("dali", "resident") else data_format


def require_folder(path: str | os.PathLike, key: str) -> Path:
    """`path` if it is a folder that can be listed.

    Raises:
        DataError: it is missing or a file.
    """
    path = Path(path)
    if path.is_dir():
        return path
    if path.exists():
        raise DataError(f"{key}: '{path}' is a file, a folder is needed.")
    parent = path.parent
    names = [p.name for p in parent.iterdir() if p.is_dir()] if parent.is_dir() else []
    hint = did_you_mean(path.name, names) if names else f"'{parent}' does not exist either."
    hint = hint.replace("Valid names:", f"Folders in '{parent}':")
    raise DataError(f"{key}: there is no folder '{path}' (from {Path.cwd()}). {hint}")


def image_files(folder: Path) -> list[str]:
    """Names of the image files directly in `folder`, sorted; hidden files do not count.

    Where there are none, arrays (`.npy`) count as images.
    """
    with os.scandir(folder) as entries:
        shown = sorted(e.name for e in entries if _shown(e.name) and e.is_file())
    images = [name for name in shown if name.lower().endswith(IMG_EXTENSIONS)]
    return images or [name for name in shown if name.lower().endswith(ARRAYS)]


def images_below(folder: str | Path) -> list[Path]:
    """Images of a folder and of its subfolders, sorted; hidden files and folders do not count."""
    folder = Path(folder)
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMG_EXTENSIONS
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def _shown(name: str) -> bool:
    return not name.startswith(".")


def class_folders(folder: Path) -> list[str]:
    """Names of the classes of `<folder>/<class>/...`, sorted; hidden folders are none.

    Tiny-ImageNet's validation set lies flat, and `val_annotations.txt` says the classes.
    """
    if (folder / TINY).is_file():
        return sorted({label for _, label in _annotations(folder)})
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and _shown(entry.name))


def class_files(folder: Path, name: str) -> list[str]:
    """Paths of the images at any depth below a class, sorted; what is hidden does not count."""
    if (folder / TINY).is_file():
        return [
            str(folder / "images" / file) for file, label in _annotations(folder) if label == name
        ]
    found: list[str] = []
    for root, _, _ in sorted(os.walk(folder / name, followlinks=True)):
        if all(map(_shown, Path(root).relative_to(folder).parts)):
            found += [os.path.join(root, file) for file in image_files(Path(root))]
    return found


def _annotations(folder: Path) -> list[tuple[str, str]]:
    """(file, class) of Tiny-ImageNet's validation images, sorted by file.

    Raises:
        DataError: a line has no class.
    """
    pairs = []
    for number, line in enumerate((folder / TINY).read_text(encoding="utf-8").splitlines(), 1):
        words = line.split("\t") if "\t" in line else line.split()
        if len(words) < 2:
            raise DataError(f"{folder / TINY}, line {number}: expected '<image> <class> ...'")
        pairs.append((words[0], words[1]))
    return sorted(pairs)


class ClassFolders(tv.ImageFolder):
    """torchvision's ImageFolder by this project's one rule for folders: see `class_files`."""

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        """Names of the classes, sorted, and their labels."""
        classes = class_folders(Path(directory))
        return classes, {name: label for label, name in enumerate(classes)}

    @staticmethod
    def make_dataset(directory: Any, class_to_idx: dict[str, int], *_: Any, **__: Any) -> list:
        """(path, label) of all images, class by class.

        Raises:
            FileNotFoundError: a class has none.
        """
        found = {name: class_files(Path(directory), name) for name in class_to_idx}
        if empty := [name for name, files in found.items() if not files]:
            raise FileNotFoundError(f"no image in {', '.join(empty[:5])}")
        return [(file, class_to_idx[name]) for name, files in found.items() for file in files]


def require_same_classes(train: Sequence[str], val: Sequence[str]) -> None:
    """Labels are positions in the sorted names, so both splits must have the same names.

    Raises:
        DataError: they have not; it names those that only one of them has.
    """
    if list(train) == list(val):
        return
    odd = sorted(set(train) ^ set(val))
    raise DataError(
        f"data.train_path has {len(train)} classes and data.val_path {len(val)}; in only one of "
        f"them: {', '.join(odd[:5])}{', ...' if len(odd) > 5 else ''}."
    )


def compare_folders(train: str | os.PathLike | None, val: str | os.PathLike | None) -> None:
    """`require_same_classes` of two folders, where both are folders.

    Raises:
        DataError: their classes differ.
    """
    if train is None or val is None or not (Path(train).is_dir() and Path(val).is_dir()):
        return
    require_same_classes(*(class_folders(require_folder(path, "")) for path in (train, val)))


def image_folder(
    path: str | os.PathLike,
    transform: Callable | None,
    key: str,
    cls: type[tv.ImageFolder] = ClassFolders,
    loader: Callable = read_image,
) -> tv.ImageFolder:
    """A torchvision ImageFolder (`<path>/<class>/<image>`) whose reader names broken files.

    Args:
        path: the folder.
        transform: applied to each image.
        key: configuration key that holds `path`, for messages.
        cls: ImageFolder or a subclass.
        loader: from a path to an image, `read_image` or `read_pixels`.

    Raises:
        DataError: the folder is missing, has no class folders, or has an empty one.
    """
    folder = require_folder(path, key)
    if not class_folders(folder):
        raise DataError(f"{key}: {_why_no_classes(folder)}")
    try:
        return cls(str(folder), transform, loader=loader)
    except FileNotFoundError as error:
        raise DataError(
            f"{key}: some class folders of '{folder}' hold no images: {error}"
        ) from None


def in_folders(info: DatasetInfo, path: str | os.PathLike) -> bool:
    """Whether `path` has this data set as `<class>/<image>`, which its builder does not read."""
    if not info.in_folders or not Path(path).is_dir():
        return False
    folders = [p for p in Path(path).iterdir() if p.is_dir() and not p.name.startswith(".")]
    return len(folders) == info.num_classes and all(map(image_files, folders))


def _why_no_classes(folder: Path) -> str:
    if image_files(folder):
        return (
            f"'{folder}' holds images but no class folders. For images without labels set "
            "data.no_labels=True; otherwise sort them into one folder per class."
        )
    return f"'{folder}' is empty: expected <class>/<image> inside."


def named_torchvision(
    dataset: str, path: str | os.PathLike, download: bool, key: str, cls: type, **kwargs: Any
) -> Dataset:
    """Build a torchvision dataset (`cls`), downloading it if asked.

    Raises:
        DataError: it is not there and could not be downloaded.
    """
    try:
        return cls(str(path), download=download, **kwargs)
    except (RuntimeError, OSError) as error:
        action = "and could not be downloaded" if download else "and downloading is off"
        reason = " ".join(str(error).split())
        raise DataError(
            f"{key}: {dataset} is not in '{path}' {action} ({reason}). Put torchvision's "
            f"extracted files there, or choose a dataset that needs none (data.dataset=digits)."
        ) from None


def require_fraction(data_fraction: float | None) -> float | None:
    """The fraction if one is asked for, None for the whole dataset (None or -1).

    Raises:
        ConfigError: it is neither -1 nor between 0 and 1.
    """
    if data_fraction is None or data_fraction == -1:
        return None
    if not 0 < data_fraction < 1:
        raise ConfigError(
            f"data.fraction={data_fraction} is out of range: use a number between 0 and 1 "
            "(both excluded), or -1 for the whole dataset."
        )
    return float(data_fraction)


def take_fraction(
    dataset: Dataset, data_fraction: float | None, of: str = "images", split: Split | None = None
) -> Dataset:
    """Keep a fixed random part of `dataset`, in place, and note it as `dataset.split`.

    Understands `.samples` (image folders), `.images` (no labels), H5 files and the array datasets
    of torchvision (`.data` with `.targets` or `.labels`).

    Args:
        dataset: changed.
        data_fraction: between 0 and 1; None or -1 keeps all.
        of: see `solo.data.datasets.splits.subset_indices`.
        split: what an earlier run has drawn; None draws.

    Raises:
        ConfigError: the fraction cannot be drawn.
        DataError: `split` is a part of other data.
    """
    fraction = require_fraction(data_fraction)
    if fraction is None:
        return dataset
    labels = item_labels(dataset)
    if split is None:
        split = draw(len(dataset), labels, fraction, of)
    split.require(len(dataset), labels, fraction, of)
    dataset.split = split
    return keep_items(dataset, split.indices)


# What datasets call their items, one entry per item.
_PER_ITEM = (
    "samples",
    "imgs",
    "images",
    "targets",
    "labels",
    "data",
    "_data",
    "originals",
    "ids",
    "places",
)


def keep_items(dataset: Dataset, kept: Sequence[int]) -> Dataset:
    """Keep the items at the positions `kept`, in that order, in place."""
    n = len(dataset)
    for name in _PER_ITEM:
        value = getattr(dataset, name, None)
        if isinstance(value, np.ndarray) and len(value) == n:
            setattr(dataset, name, value[kept])
        elif isinstance(value, list):
            setattr(dataset, name, [value[i] for i in kept])
    return dataset


def item_labels(dataset: Dataset) -> list[int] | None:
    """Labels of all items without reading an image; None if there are none, or several each."""
    for name in ("samples", "_data"):
        if isinstance(getattr(dataset, name, None), list):
            return [int(item[-1]) for item in getattr(dataset, name)]
    for name in ("targets", "labels"):
        labels = getattr(dataset, name, None)
        if labels is not None and np.ndim(labels) == 1:
            return [int(label) for label in labels]
    return None
