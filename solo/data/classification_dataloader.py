# SPDX-License-Identifier: MIT
"""Labelled images for linear evaluation, fine-tuning, kNN and online validation.

A batch is `(images, targets)` with images (N, 3, H, W).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T
from torchvision.datasets import CIFAR10, CIFAR100, STL10, ImageFolder

from solo.data.catalogue import (
    CIFAR_CLASSES,
    DIGITS_MEAN,
    DIGITS_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    N_CLASSES_PER_DATASET,
    require_dataset,
)
from solo.data.datasets.digits import SIZE, DigitsDataset
from solo.data.datasets.folders import (
    default_data_path,
    image_folder,
    is_cifar_in_folders,
    item_labels,
    named_torchvision,
    require_format,
    take_fraction,
)
from solo.data.datasets.splits import Split
from solo.data.datasets.voc import VOCClassification
from solo.data.loading import make_loader, seeded
from solo.errors import DataError

TRAIN_KEY, VAL_KEY = "data.train_path", "data.val_path"
# cifar10's statistics serve cifar100 too: solo-learn's published linear accuracies rest on it.
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)
STL10_MEAN, STL10_STD = (0.4914, 0.4823, 0.4466), (0.247, 0.243, 0.261)


def _ending(mean: tuple[float, ...], std: tuple[float, ...]) -> list[Callable]:
    return [T.ToTensor(), T.Normalize(mean, std)]


def _train(size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> T.Compose:
    crop = T.RandomResizedCrop(size=size, scale=(0.08, 1.0))
    return T.Compose([crop, T.RandomHorizontalFlip(), *_ending(mean, std)])


def build_custom_pipeline(size: int = 224) -> dict[str, T.Compose]:
    """Transforms of a dataset without its own: those of ImageNet, under T_train and T_val."""
    shorter = round(size * 256 / 224)
    val = [T.Resize(shorter), T.CenterCrop(size), *_ending(IMAGENET_MEAN, IMAGENET_STD)]
    return {"T_train": _train(size, IMAGENET_MEAN, IMAGENET_STD), "T_val": T.Compose(val)}


def _cifar_pipeline(size: int = 32) -> dict[str, T.Compose]:
    resize = [] if size == 32 else [T.Resize((size, size))]
    val = [*resize, *_ending(CIFAR_MEAN, CIFAR_STD)]
    return {"T_train": _train(size, CIFAR_MEAN, CIFAR_STD), "T_val": T.Compose(val)}


def _stl10_pipeline(size: int = 96) -> dict[str, T.Compose]:
    val = [T.Resize((size, size)), *_ending(STL10_MEAN, STL10_STD)]
    return {"T_train": _train(size, STL10_MEAN, STL10_STD), "T_val": T.Compose(val)}


def _digits_pipeline(size: int = SIZE) -> dict[str, T.Compose]:
    # A mirrored digit is another shape and a small crop is no digit at all: small shifts, no flips.
    ending = [
        *([] if size == SIZE else [T.Resize((size, size))]),
        *_ending(DIGITS_MEAN, DIGITS_STD),
    ]
    shift = T.RandomCrop(SIZE, padding=2, padding_mode="reflect")
    return {"T_train": T.Compose([shift, *ending]), "T_val": T.Compose(ending)}


_PIPELINES: dict[str, Callable[..., dict[str, T.Compose]]] = {
    "cifar10": _cifar_pipeline,
    "cifar100": _cifar_pipeline,
    "stl10": _stl10_pipeline,
    "imagenet": build_custom_pipeline,
    "imagenet100": build_custom_pipeline,
    "custom": build_custom_pipeline,
    "digits": _digits_pipeline,
    "voc07": build_custom_pipeline,
}


def prepare_transforms(dataset: str, size: int | None = None) -> tuple[nn.Module, nn.Module]:
    """Training and validation transforms, from PIL images to tensors.

    Args:
        dataset: its name.
        size: side of the images; None = the data set's own. An encoder that is transferred to
            another data set may want the size that it was trained on.

    Raises:
        ConfigError: the dataset is unknown.
    """
    build = _PIPELINES[require_dataset(dataset)]
    pipeline = build() if size is None else build(size)
    return pipeline["T_train"], pipeline["T_val"]


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
) -> tuple[Dataset, Dataset]:
    """Training and validation sets, items `(image, target)`.

    Args:
        dataset: cifar10, cifar100, stl10, imagenet, imagenet100, custom, digits or voc07.
        T_train: transform of the training images.
        T_val: transform of the validation images.
        train_data_path: folder, or H5 file with `data_format="h5"`; inside the package when None.
            CIFAR may be there as torchvision's files or as `<class>/<image>`.
        val_data_path: the same for validation.
        data_format: `image_folder`, `h5` or `webdataset` (imagenet, imagenet100 and custom).
        download: fetch cifar and stl10 when they are missing.
        data_fraction: part of the training images to keep, between 0 and 1; -1 keeps all.
        split: that part as an earlier run has drawn it; None draws.

    Raises:
        ConfigError: unknown dataset or format, or a fraction out of range.
        DataError: the data is missing or unreadable, or `split` is a part of other data.
    """
    train = _split(dataset, True, T_train, train_data_path, data_format, download)
    val = _split(dataset, False, T_val, val_data_path, data_format, download)
    return take_fraction(train, data_fraction, split=split), val


def _split(
    dataset: str,
    train: bool,
    transform: Callable,
    path: str | Path | None,
    data_format: str | None,
    download: bool,
) -> Dataset:
    """One split of a dataset; see `prepare_datasets`."""
    require_dataset(dataset)
    key = TRAIN_KEY if train else VAL_KEY
    path = default_data_path() if path is None else Path(path)
    if is_cifar_in_folders(dataset, path):
        return image_folder(path, transform, key, seeded(ImageFolder))
    if dataset in CIFAR_CLASSES:
        cls = seeded(CIFAR10 if dataset == "cifar10" else CIFAR100)
        kwargs = {"train": train, "transform": transform}
        return named_torchvision(dataset, path, download, key, cls, **kwargs)
    if dataset == "stl10":
        kwargs = {"split": "train" if train else "test", "transform": transform}
        return named_torchvision(dataset, path, download, key, seeded(STL10), **kwargs)
    if dataset == "digits":
        return seeded(DigitsDataset)(train=train, transform=transform)
    if dataset == "voc07":
        return seeded(VOCClassification)(path, "trainval" if train else "test", transform)
    if require_format(data_format) == "h5":
        from solo.data.h5_dataset import H5Dataset

        return seeded(H5Dataset)(dataset, path, transform, key=key)
    if data_format == "webdataset":
        from solo.data.shards.dataset import ShardDataset

        classes = N_CLASSES_PER_DATASET.get(dataset)
        return seeded(ShardDataset)(path, transform, key, labels="needed", num_classes=classes)
    return image_folder(path, transform, key, seeded(ImageFolder))


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
    split: Split | None = None,
) -> tuple[DataLoader, DataLoader]:
    """Transforms, datasets and loaders in one call.

    Args:
        auto_augment: train with timm's RandAugment pipeline at 224 pixels (as MAE fine-tunes).
        image_size: see `prepare_transforms`.
        others: see `prepare_datasets` and `prepare_dataloaders`.

    Raises:
        ConfigError: unknown dataset or format, or a fraction out of range.
        DataError: the data is missing or unreadable, or the two splits have other classes.
    """
    T_train, T_val = prepare_transforms(dataset, image_size)
    if auto_augment:
        T_train = _auto_augment()
    train, val = prepare_datasets(
        dataset, T_train, T_val, train_data_path, val_data_path, data_format, download,
        data_fraction, split,
    )  # fmt: skip
    _check_classes(train, val)
    return prepare_dataloaders(train, val, batch_size, num_workers)


def prepare_val_data(
    dataset: str,
    val_data_path: str | Path | None = None,
    data_format: str | None = "image_folder",
    batch_size: int = 64,
    num_workers: int = 4,
    download: bool = True,
) -> DataLoader:
    """The validation loader alone, for runs that need no labelled training set.

    Raises:
        DataError: the data is missing or unreadable.
    """
    _, T_val = prepare_transforms(dataset)
    val = _split(dataset, False, T_val, val_data_path, data_format, download)
    return prepare_val_dataloader(val, batch_size, num_workers)


def _auto_augment() -> Callable:
    from timm.data import create_transform

    return create_transform(
        input_size=224,
        is_training=True,
        color_jitter=None,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        re_prob=0.25,
        re_mode="pixel",
        re_count=1,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )


def _check_labels(train: Dataset, val: Dataset) -> None:
    """Of shards whose classes have no names: validation may not have further ones."""
    tops = [max(item_labels(dataset) or [0]) for dataset in (train, val)]
    if tops[1] > tops[0]:
        raise DataError(
            f"{VAL_KEY} has labels up to {tops[1]}, but those of {TRAIN_KEY} end at {tops[0]}."
        )


def _check_classes(train: Dataset, val: Dataset) -> None:
    """Labels are positions in the sorted class names, so both splits must have the same names."""
    ours, theirs = getattr(train, "classes", None), getattr(val, "classes", None)
    if ours is None or theirs is None:
        return _check_labels(train, val)
    if list(ours) != list(theirs):
        odd = sorted(set(ours) ^ set(theirs))
        raise DataError(
            f"{TRAIN_KEY} has {len(ours)} classes and {VAL_KEY} {len(theirs)}; in only one of "
            f"them: {', '.join(odd[:5])}{', ...' if len(odd) > 5 else ''}."
        )
