# SPDX-License-Identifier: MIT
"""Views of unlabelled images for self-supervised pretraining (torchvision on the CPU).

A batch is `[indexes, [view, ...], targets]`: views are (N, 3, crop_size, crop_size) floats, the
targets -1 where an image has no label.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T

from solo.data.catalogue import TRAIN_KEY, Wanted, info_of, pretrain_statistics
from solo.data.datasets.folders import (
    ClassFolders,
    default_data_path,
    image_files,
    image_folder,
    images_below,
    in_folders,
    require_folder,
    require_format,
    take_fraction,
)
from solo.data.datasets.holdout import Holdout
from solo.data.datasets.images import read_image, readers
from solo.data.loading import as_instance, make_loader, picklable_state, seeded
from solo.data.views.augmentation_keys import STRENGTHS, checked_augmentation
from solo.data.views.tensor_crops import PaddedCrop, RandomFallbackCrop
from solo.errors import ConfigError, DataError


@cache
def dataset_with_index(DatasetClass: type[Dataset]) -> type[Dataset]:
    """A subclass of `DatasetClass` whose items are `(index, *item)`, seeded by pass and index."""

    class DatasetWithIndex(seeded(DatasetClass)):
        def __getitem__(self, index):
            return (index, *super().__getitem__(index))

        def __reduce__(self):  # a local class cannot be pickled by name (spawned workers)
            return _unpickle_with_index, (DatasetClass,), picklable_state(self)

    return DatasetWithIndex


def with_index(dataset: Dataset) -> Dataset:
    """A built data set as one whose items are `(index, *item)`."""
    return as_instance(dataset, dataset_with_index(type(dataset)))


def _unpickle_with_index(DatasetClass: type[Dataset]) -> Dataset:
    return object.__new__(dataset_with_index(DatasetClass))


class CustomDatasetWithoutLabels(Dataset):
    """The images of one folder; items are `(image, -1)`.

    Args:
        root: folder with image files; other files in it are passed over. Where none lies directly
            in it, the images of its subfolders count.
        transform: applied to the image.
        loader: from a path to an image, `read_image` or `read_pixels`.

    Attributes:
        images: file names below `root`, sorted, so that all ranks agree on the indexes.

    Raises:
        DataError: the folder is missing or holds no images.
    """

    def __init__(
        self,
        root: str | Path,
        transform: Callable | None = None,
        loader: Callable = read_image,
    ):
        self.root = require_folder(root, TRAIN_KEY)
        self.transform, self.loader = transform, loader
        self.images = image_files(self.root) or [
            path.relative_to(self.root).as_posix() for path in images_below(self.root)
        ]
        if not self.images:
            raise DataError(f"{TRAIN_KEY}: there are no images in '{root}' or in its subfolders.")

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = self.loader(self.root / self.images[index])
        return (self.transform(image) if self.transform else image), -1

    def __len__(self) -> int:
        return len(self.images)


class GaussianBlur:
    """Blur a PIL image with a radius drawn uniformly from `sigma` (SimCLR, appendix A).

    Args:
        sigma: smallest and largest radius in pixels; (0.1, 2.0) when None.
    """

    def __init__(self, sigma: Sequence[float] | None = None):
        self.sigma = [0.1, 2.0] if sigma is None else sigma

    def __call__(self, img: Image.Image) -> Image.Image:
        return img.filter(ImageFilter.GaussianBlur(radius=random.uniform(*self.sigma)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(sigma={list(self.sigma)})"


class Solarization:
    """Invert all pixels from 128 up (BYOL, appendix B)."""

    def __call__(self, img: Image.Image) -> Image.Image:
        return ImageOps.solarize(img)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Equalization:
    """Equalise the histogram of each channel of a PIL image."""

    def __call__(self, img: Image.Image) -> Image.Image:
        return ImageOps.equalize(img)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class NCropAugmentation:
    """Draw `num_crops` views of an image from one pipeline.

    Args:
        transform: pipeline from a PIL image to a tensor.
        num_crops: number of views.
    """

    def __init__(self, transform: Callable, num_crops: int):
        self.transform = transform
        self.num_crops = num_crops

    def __call__(self, x: Image.Image) -> list[Tensor]:
        return [self.transform(x) for _ in range(self.num_crops)]

    def __repr__(self) -> str:
        return f"{self.num_crops} x [{self.transform}]"


class FullTransformPipeline:
    """The views of several pipelines, one after the other, in one list."""

    def __init__(self, transforms: Sequence[Callable]) -> None:
        self.transforms = transforms

    def __call__(self, x: Image.Image) -> list[Tensor]:
        return [view for transform in self.transforms for view in transform(x)]

    def __repr__(self) -> str:
        return "\n".join(str(transform) for transform in self.transforms)


def build_transform_pipeline(dataset: str, cfg: Mapping[str, Any]) -> T.Compose:
    """The augmentation pipeline of one entry of `augmentations`.

    Args:
        dataset: its name decides mean and standard deviation; a dataset without its own uses the
            entry's `mean` and `std`, or else those of ImageNet.
        cfg: the entry, see `solo.data.views.augmentation_keys`.

    Returns:
        Compose from a PIL image to a (3, crop_size, crop_size) tensor. Where `mean` has another
        number of channels, from a tensor (channels, H, W) uint8 to as many channels.

    Raises:
        ConfigError: the entry has an unknown key or a bad value.
    """
    entry = checked_augmentation(cfg)
    mean, std = pretrain_statistics(dataset, entry)
    if len(mean) != 3:  # no PIL image has so many channels
        from solo.data.views.batched.view import OneByOne

        return T.Compose([OneByOne(dataset, cfg)])
    jitter = [entry["color_jitter"].get(strength) or 0 for strength in STRENGTHS]
    turn = T.RandomRotation(
        entry["rotation"].get("degrees") or 0, interpolation=T.InterpolationMode.BILINEAR
    )
    optional = [
        (T.RandomApply, [turn], "rotation"),
        (T.RandomApply, [T.ColorJitter(*jitter)], "color_jitter"),
        (T.RandomGrayscale, None, "grayscale"),
        (T.RandomApply, [GaussianBlur()], "gaussian_blur"),
        (T.RandomApply, [Solarization()], "solarization"),
        (T.RandomApply, [Equalization()], "equalization"),
        (T.RandomHorizontalFlip, None, "horizontal_flip"),
    ]
    crop = crop_of(entry)
    steps: list[Callable] = [*crop.transforms] if isinstance(crop, T.Compose) else [crop]
    for op, inner, section in optional:
        prob = entry[section]["prob"]
        if prob:
            steps.append(op(inner, p=prob) if inner else op(p=prob))
    return T.Compose([*steps, T.ToTensor(), T.Normalize(mean=tuple(mean), std=tuple(std))])


def crop_of(cfg: Mapping[str, Any]) -> Callable:
    """The first step of the pipeline of one entry, from a PIL image to one of `crop_size`.

    Without `rrc` and `padding` the shorter side is resized to `crop_size`, and the centre cut out.
    """
    entry = checked_augmentation(cfg)
    size, rrc = entry["crop_size"], entry["rrc"]
    bicubic = T.InterpolationMode.BICUBIC
    if "padding" in entry:
        return PaddedCrop(size, padding=entry["padding"])
    if not rrc["enabled"]:
        return T.Compose([T.Resize(size, interpolation=bicubic), T.CenterCrop(size)])
    scale = (rrc["crop_min_scale"], rrc["crop_max_scale"])
    law = RandomFallbackCrop if rrc["fallback"] == "random" else T.RandomResizedCrop
    return law(size, scale=scale, interpolation=bicubic)


def prepare_n_crop_transform(
    transforms: Sequence[Callable], num_crops_per_aug: Sequence[int]
) -> FullTransformPipeline:
    """All views of an image: `num_crops_per_aug[i]` from `transforms[i]`.

    Raises:
        ConfigError: the two lists differ in length.
    """
    if len(transforms) != len(num_crops_per_aug):
        raise ConfigError(
            f"{len(transforms)} augmentation pipelines but {len(num_crops_per_aug)} crop counts."
        )
    pairs = zip(transforms, num_crops_per_aug, strict=True)
    return FullTransformPipeline([NCropAugmentation(t, n) for t, n in pairs])


def prepare_datasets(
    dataset: str,
    transform: Callable,
    train_data_path: str | Path | None = None,
    data_format: str | None = "image_folder",
    no_labels: bool | None = False,
    download: bool = True,
    data_fraction: float = -1.0,
    fraction_of: str = "images",
    pixels: bool = False,
    exif: str = "ignore",
    value_range: Sequence[float] | None = None,
    channels: int = 3,
    holdout: Holdout | None = None,
) -> Dataset:
    """The training set of a dataset, items `(index, transform(image), target)`.

    Args:
        dataset: its name, see `solo.data.catalogue`.
        transform: from an image to a list of views.
        train_data_path: folder, or H5 file when `data_format` is `h5`; inside the package when
            None. CIFAR may be there as torchvision's files or as `<class>/<image>`.
        data_format: `image_folder`, `h5` or `webdataset`, for data sets of images in files.
        no_labels: targets are -1. custom: the images lie in one flat folder; stl10: unlabelled
            images only.
        download: fetch files that are missing, where the data set can.
        data_fraction: part of the images to keep, between 0 and 1; -1 keeps all.
        fraction_of: `images` keeps that part of every class, `classes` all of that many classes.
        pixels: files reach the transform as (3, H, W) uint8 tensors, which is faster, not as PIL
            images.
        exif: `apply` turns images as their EXIF orientation says, `ignore` does not.
        value_range: what is black and white in images of int32 or float values, see `readers`.
        channels: of the images; other than 3, transforms get tensors (channels, H, W) uint8.
        holdout: images that are left out, since they validate.

    Raises:
        ConfigError: unknown dataset or format, or a fraction out of range.
        DataError: the data is missing or unreadable.
    """
    info = info_of(dataset)
    path = default_data_path() if train_data_path is None else Path(train_data_path)
    loader, decode = readers(exif, pixels, value_range, channels)
    wanted = Wanted("pretrain", path, transform, loader, bool(no_labels), download)
    if in_folders(info, path):
        built = image_folder(path, transform, TRAIN_KEY, dataset_with_index(ClassFolders), loader)
    elif info.build is not None:
        built = with_index(info.made(wanted))
    elif require_format(data_format) == "h5":
        from solo.data.h5_dataset import H5Dataset

        built = dataset_with_index(H5Dataset)(dataset, path, transform, decode=decode)
    elif data_format == "webdataset":
        from solo.data.shards.dataset import ShardDataset

        built = dataset_with_index(ShardDataset)(
            path,
            transform,
            decode=decode,
            labels="ignored" if no_labels else "wanted",
            num_classes=info.num_classes,
        )
    elif info.any_images and no_labels:
        built = dataset_with_index(CustomDatasetWithoutLabels)(path, transform, loader)
    else:
        built = image_folder(path, transform, TRAIN_KEY, dataset_with_index(ClassFolders), loader)
    if holdout is not None:
        built = holdout.keep(built, "train")
    return take_fraction(built, data_fraction, fraction_of)


def prepare_dataloader(
    train_dataset: Dataset, batch_size: int = 64, num_workers: int = 4
) -> DataLoader:
    """A shuffling loader that drops the last, incomplete batch.

    Args:
        train_dataset: from `prepare_datasets`.
        batch_size: images per batch and per process.
        num_workers: loader processes; they stay alive between epochs.
    """
    return make_loader(train_dataset, batch_size, num_workers, shuffle=True, drop_last=True)


def require_full_batch(train_dataset: Dataset, batch_size: int, processes: int = 1) -> None:
    """Raise ConfigError when the dataset does not fill one batch, so that no step would ever run.

    The programs ask this; a loader by itself may be empty, as in solo-learn.

    Args:
        train_dataset: the images of all processes.
        batch_size: of each process.
        processes: that share them; all but shards are dealt out with some images twice.
    """
    n = len(train_dataset)
    share = n // processes if hasattr(train_dataset, "sampler_class") else -(-n // processes)
    if share < batch_size:
        part = f"a process's part of the training set ({n} images for {processes} processes)"
        whole = f"the training set ({n} images)"
        raise ConfigError(
            f"optimizer.batch_size={batch_size} is larger than {part if processes > 1 else whole}, "
            "so no batch would ever be full."
        )
