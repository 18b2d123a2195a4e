# SPDX-License-Identifier: MIT
"""Labelled images for linear evaluation, fine-tuning, kNN and online validation.

A batch is `(images, targets)` with images (N, 3, H, W).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T

from solo.data.catalogue import (
    DATASETS,
    TRAIN_KEY,
    VAL_KEY,
    DatasetInfo,
    Wanted,
    info_of,
    known,
)
from solo.data.datasets.folders import (
    ClassFolders,
    default_data_path,
    image_folder,
    in_folders,
    item_labels,
    require_format,
    require_same_classes,
    take_fraction,
)
from solo.data.datasets.holdout import Holdout
from solo.data.datasets.images import readers
from solo.data.datasets.splits import Split
from solo.data.datasets.unreadable import without_unreadable
from solo.data.loading import make_loader, seeded, with_seeds
from solo.data.shown import CROP_MIN_SCALE, Shown, shown
from solo.data.views.device_normalise import left_as_bytes
from solo.errors import ConfigError, DataError


def _pipeline(
    info: DatasetInfo, shown: Shown, crop_min_scale: float = CROP_MIN_SCALE
) -> dict[str, T.Compose]:
    """Transforms of a data set, under T_train and T_val."""
    side, mean, std = shown.size, shown.mean, shown.std
    # images of other channels than three are tensors already
    convert = T.ToTensor() if len(mean) == 3 else T.ConvertImageDtype(torch.float32)
    ending = [convert, T.Normalize(mean, std)]
    if info.side is None:
        fit: list[Callable] = [T.Resize(round(side * 256 / 224)), T.CenterCrop(side)]
    else:
        fit = [T.Resize((side, side))]  # leaves an image of that size as it is
    if info.shift and info.side:
        if crop_min_scale != CROP_MIN_SCALE:
            raise ConfigError(
                f"data.augmentations.crop_min_scale={crop_min_scale:g}: images of {info.name} are "
                f"shifted and not cropped. Leave it out."
            )
        shift = T.RandomCrop(info.side, padding=info.shift, padding_mode="reflect")
        train = [shift, *fit]
    else:
        crop = T.RandomResizedCrop(size=side, scale=(crop_min_scale, 1.0))
        train = [crop, T.RandomHorizontalFlip()]
    return {"T_train": T.Compose([*train, *ending]), "T_val": T.Compose([*fit, *ending])}


def build_custom_pipeline(size: int = 224) -> dict[str, T.Compose]:
    """Transforms of a dataset without its own: those of ImageNet, under T_train and T_val."""
    return _pipeline(DATASETS["custom"], shown(DATASETS["custom"], None, size))


def prepare_transforms(
    dataset: str,
    size: int | None = None,
    images: Shown | None = None,
    crop_min_scale: float = CROP_MIN_SCALE,
) -> tuple[nn.Module, nn.Module]:
    """Training and validation transforms, from PIL images to tensors.

    Args:
        dataset: its name.
        size: side of the images; None = the data set's own. An encoder that is transferred to
            another data set may want the size that it was trained on.
        images: size and statistics together, instead of `size`; see `solo.data.shown`.
        crop_min_scale: smallest share of a training image's area that a random crop shows; with 1
            images are whole, and only mirrored.

    Raises:
        ConfigError: the dataset is unknown, or its images are not cropped and a share is given.
    """
    info = info_of(dataset)
    pipeline = _pipeline(info, images or shown(info, None, size), crop_min_scale)
    return pipeline["T_train"], pipeline["T_val"]


def folder_transform(trained: Mapping[str, Any] | None, size: int | None = None) -> T.Compose:
    """How evaluation shows images of any size to the encoder of a run, from PIL image to tensor.

    For images of a folder that no data set describes. They become as large, and are normalised,
    as the run's own: those of a data set with one size are squeezed to it, others are resized and
    cut as in evaluation. A data set that nothing is registered for counts as images of any size.

    Args:
        trained: configuration of the run (`args.json`), None where there is none.
        size: side of the images; None = the run's own.
    """
    info = known(((trained or {}).get("data") or {}).get("dataset"))
    images = shown(info, trained, size)
    steps = _pipeline(info, images)["T_val"].transforms
    if info.side is None:
        return T.Compose(steps)
    return T.Compose([T.Resize((images.size, images.size)), *steps[-2:]])


def prepare_datasets(
    dataset: str,
    T_train: Callable,
    T_val: Callable,
    train_data_path: str | Path | None = None,
    val_data_path: str | Path | None = None,
    data_format: str | None = "image_folder",
    download: bool = True,
    data_fraction: float = -1.0,
    split: Split | None = None,
    exif: str = "ignore",
    value_range: Sequence[float] | None = None,
    fraction_of: str = "images",
    skip_unreadable: bool = False,
    threads: int = 1,
    channels: int = 3,
    holdout: Holdout | None = None,
) -> tuple[Dataset, Dataset]:
    """Training and validation sets, items `(image, target)`.

    Args:
        dataset: its name, see `solo.data.catalogue`.
        T_train: transform of the training images.
        T_val: transform of the validation images.
        train_data_path: folder, or H5 file with `data_format="h5"`; inside the package when None.
            CIFAR may be there as torchvision's files or as `<class>/<image>`.
        val_data_path: the same for validation.
        data_format: `image_folder`, `h5` or `webdataset`, for data sets of images in files.
        download: fetch files that are missing, where the data set can.
        data_fraction: part of the training images to keep, between 0 and 1; -1 keeps all.
        split: that part as an earlier run has drawn it; None draws.
        exif: `apply` turns images as their EXIF orientation says, `ignore` does not.
        value_range: what is black and white in images of int32 or float values, see `readers`.
        fraction_of: `images` keeps that part of every class, `classes` all of that many classes.
        skip_unreadable: broken files are counted and left out of both sets, see `unreadable`.
        threads: that look for them.
        channels: of the images; other than 3, transforms get tensors (channels, H, W) uint8.
        holdout: which of the training images validate, where there is no `val_data_path`.

    Raises:
        ConfigError: unknown dataset or format, or a fraction out of range.
        DataError: the data is missing or unreadable, or `split` is a part of other data.
    """
    info = info_of(dataset)
    reading = readers(exif, value_range=value_range, channels=channels)
    train = _split(info, True, T_train, train_data_path, data_format, download, reading)
    if holdout is not None:
        val_data_path = train_data_path
    val = _split(info, False, T_val, val_data_path, data_format, download, reading)
    if holdout is not None:
        train, val = holdout.keep(train, "train"), holdout.keep(val, "val")
    train = take_fraction(train, data_fraction, fraction_of, split)
    if skip_unreadable:
        train = without_unreadable(train, f"'{train_data_path}'", threads)
        val = without_unreadable(val, f"'{val_data_path}'", threads, VAL_KEY)
    return train, val


def _split(
    info: DatasetInfo,
    train: bool,
    transform: Callable,
    path: str | Path | None,
    data_format: str | None,
    download: bool,
    reading: tuple[Callable, Callable],
) -> Dataset:
    """One split of a dataset; see `prepare_datasets`."""
    path = default_data_path() if path is None else Path(path)
    loader, decode = reading
    wanted = Wanted("train" if train else "val", path, transform, loader, download=download)
    if in_folders(info, path):
        return image_folder(path, transform, wanted.key, seeded(ClassFolders), loader)
    if info.build is not None:
        return with_seeds(info.made(wanted))
    key = wanted.key
    if require_format(data_format) == "h5":
        from solo.data.h5_dataset import H5Dataset

        return seeded(H5Dataset)(info.name, path, transform, key=key, decode=decode)
    if data_format == "webdataset":
        from solo.data.shards.dataset import ShardDataset

        options = {"labels": "needed", "num_classes": info.num_classes}
        return seeded(ShardDataset)(path, transform, key, decode, **options)
    return image_folder(path, transform, key, seeded(ClassFolders), loader)


def prepare_dataloaders(
    train_dataset: Dataset, val_dataset: Dataset, batch_size: int = 64, num_workers: int = 4
) -> tuple[DataLoader, DataLoader]:
    """Loaders: training shuffles and drops the last incomplete batch, validation does neither."""
    train = make_loader(train_dataset, batch_size, num_workers, shuffle=True, drop_last=True)
    return train, prepare_val_dataloader(val_dataset, batch_size, num_workers)


def prepare_val_dataloader(
    val_dataset: Dataset, batch_size: int = 64, num_workers: int = 4
) -> DataLoader:
    """A loader that goes through a validation set in order, all of it."""
    return make_loader(val_dataset, batch_size, num_workers, shuffle=False, drop_last=False)


def prepare_data(
    dataset: str,
    train_data_path: str | Path | None = None,
    val_data_path: str | Path | None = None,
    data_format: str | None = "image_folder",
    batch_size: int = 64,
    num_workers: int = 4,
    download: bool = True,
    data_fraction: float = -1.0,
    auto_augment: bool = False,
    image_size: int | None = None,
    images: Shown | None = None,
    as_bytes: bool = False,
    crop_min_scale: float = CROP_MIN_SCALE,
    **source: Any,
) -> tuple[DataLoader, DataLoader]:
    """Transforms, datasets and loaders in one call.

    Args:
        auto_augment: train with timm's RandAugment pipeline (as MAE fine-tunes).
        image_size: see `prepare_transforms`.
        images: see `prepare_transforms`.
        as_bytes: training images stay uint8, to be normalised on the device.
        crop_min_scale: see `prepare_transforms`.
        source: further arguments of `prepare_datasets`.
        others: see `prepare_datasets` and `prepare_dataloaders`.

    Raises:
        ConfigError: unknown dataset or format, or a fraction out of range.
        DataError: the data is missing or unreadable, or the two splits have other classes.
    """
    images = images or shown(info_of(dataset), None, image_size)
    T_train, T_val = prepare_transforms(dataset, images=images, crop_min_scale=crop_min_scale)
    if auto_augment:
        T_train = _auto_augment(images, crop_min_scale)
    if as_bytes:
        T_train = left_as_bytes(T_train)
    train, val = prepare_datasets(
        dataset, T_train, T_val, train_data_path, val_data_path, data_format, download,
        data_fraction, threads=max(1, num_workers), **source,
    )  # fmt: skip
    check_classes(train, val)
    return prepare_dataloaders(train, val, batch_size, num_workers)


def prepare_val_data(
    info: DatasetInfo,
    images: Shown,
    val_data_path: str | Path | None = None,
    data_format: str | None = "image_folder",
    batch_size: int = 64,
    num_workers: int = 4,
    download: bool = True,
    exif: str = "ignore",
    value_range: Sequence[float] | None = None,
    skip_unreadable: bool = False,
    channels: int = 3,
    holdout: Holdout | None = None,
) -> DataLoader:
    """The validation loader alone, for runs that need no labelled training set.

    Args:
        info: the record of the data set.
        images: size and statistics, see `solo.data.shown`.
        holdout: `val_data_path` holds the training images, of which this part validates.
        others: see `prepare_datasets` and `prepare_dataloaders`.

    Raises:
        DataError: the data is missing or unreadable.
    """
    T_val = _pipeline(info, images)["T_val"]
    reading = readers(exif, value_range=value_range, channels=channels)
    val = _split(info, False, T_val, val_data_path, data_format, download, reading)
    if holdout is not None:
        val = holdout.keep(val, "val")
    if skip_unreadable:
        val = without_unreadable(val, f"'{val_data_path}'", max(1, num_workers), VAL_KEY)
    return prepare_val_dataloader(val, batch_size, num_workers)


def _auto_augment(images: Shown, crop_min_scale: float) -> Callable:
    from timm.data import create_transform

    return create_transform(
        input_size=images.size,
        is_training=True,
        scale=(crop_min_scale, 1.0),
        color_jitter=None,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        re_prob=0.25,
        re_mode="pixel",
        re_count=1,
        mean=images.mean,
        std=images.std,
    )


def _check_labels(train: Dataset, val: Dataset) -> None:
    """Of shards whose classes have no names: validation may not have further ones."""
    tops = [max(item_labels(dataset) or [0]) for dataset in (train, val)]
    if tops[1] > tops[0]:
        raise DataError(
            f"{VAL_KEY} has labels up to {tops[1]}, but those of {TRAIN_KEY} end at {tops[0]}."
        )


def check_classes(train: Dataset, val: Dataset) -> None:
    """Refuse two splits with other classes, or validation labels that training does not have.

    Raises:
        DataError: they differ.
    """
    ours, theirs = getattr(train, "classes", None), getattr(val, "classes", None)
    if ours is None or theirs is None:
        return _check_labels(train, val)
    require_same_classes(ours, theirs)
