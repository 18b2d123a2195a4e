# SPDX-License-Identifier: MIT
"""What is known of each data set: one record per name, open to data sets from elsewhere.

A new data set is one record: `register_dataset(DatasetInfo("pets", num_classes=37, ...))`, see
docs/adding_a_dataset.md. Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from solo.errors import ConfigError, did_you_mean
from solo.registry import Registry

if TYPE_CHECKING:
    from torch.utils.data import Dataset

Channels = tuple[float, ...]  # one value per channel
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Of the digits: over the training split (two renderings, seed 0).
DIGITS_MEAN, DIGITS_STD = (0.4975, 0.4986, 0.5022), (0.2362, 0.2355, 0.2402)
DEFAULT_SIDE = 224
TRAIN_KEY, VAL_KEY = "data.train_path", "data.val_path"
FOLDER_FORMATS = ("image_folder", "h5", "dali", "resident", "webdataset")


@dataclass(frozen=True)
class Wanted:
    """What a builder is asked for.

    Attributes:
        split: `pretrain` (all training images), `train` (the labelled ones) or `val`.
        path: what the user gave as `data.train_path` or `data.val_path`; `datasets` inside the
            package where that is null.
        transform: to apply to each PIL image; None leaves it as it is.
        loader: reads a file as an image, as the configuration asks (`data.exif`).
        no_labels: only images without labels are wanted, where the data set has such a part.
        download: files that are missing may be fetched.
    """

    split: Literal["pretrain", "train", "val"]
    path: Path
    transform: Callable[[Any], Any] | None = None
    loader: Callable[[Any], Any] | None = None
    no_labels: bool = False
    download: bool = True

    @property
    def key(self) -> str:
        """The configuration key that holds `path`, for messages."""
        return VAL_KEY if self.split == "val" else TRAIN_KEY


@dataclass(frozen=True)
class DatasetInfo:
    """Everything that is known of one data set, under the name that users write.

    Attributes:
        name: what users write as `data.dataset`.
        num_classes: None counts them: by `count_classes`, or as the folders in `data.train_path`.
        images: numbers of training and validation images; None counts files where that is asked.
        side: of its images, where all are squares of one side: evaluation then shows them whole.
            None: images of any size, of which evaluation shows the centre (224 pixels).
        mean, std: of each channel over the training images in 0..1, for the views of pretraining;
            None takes those of the configuration, or else ImageNet's.
        eval_mean, eval_std: the same where evaluation uses others.
        shift: labelled training shifts images by up to so many pixels, instead of cropping and
            mirroring them: for images that are something else in the mirror.
        small_stem: ResNets get a 3x3 stem that keeps the resolution.
        build: makes the data set: a function `Wanted -> Dataset` with items `(image, label)`, or
            its name as `module:function`. None: images in files, one folder per class.
        path: whether users give `data.train_path` and `data.val_path`: `required`, `default`
            (`datasets` inside the package without one) or `none`. Without a validation path a
            `required` one is not validated.
        in_folders: its images may also lie in files, one folder per class, although `build` makes
            it.
        formats: values of `data.format` that go with it; None: all for images in files, else
            `image_folder` and `resident`.
        subset: file with the names of its classes, one a line, where an H5 file may hold more.
        any_images: stands for whatever images lie at the path (`custom`), so that two paths are
            two data sets, and a folder without classes may be used without labels.
        multilabel: an image has a row of labels: only for `method: multilabel`.
        count_classes: function `Path -> int` of the training path, or its `module:function`.
        short: how files with figures call it; the name by default.
    """

    name: str
    num_classes: int | None = None
    images: tuple[int, int] | None = None
    side: int | None = None
    mean: Channels | None = None
    std: Channels | None = None
    eval_mean: Channels | None = None
    eval_std: Channels | None = None
    shift: int = 0
    small_stem: bool = False
    build: Callable[[Wanted], Dataset] | str | None = None
    path: Literal["required", "default", "none"] = "required"
    in_folders: bool = False
    formats: tuple[str, ...] | None = None
    subset: str | None = None
    any_images: bool = False
    multilabel: bool = False
    count_classes: Callable[[Path], int] | str | None = None
    short: str = ""

    def __post_init__(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise ConfigError(f"DatasetInfo('{self.name}'): give both mean and std, or neither.")
        for name in ("mean", "std", "eval_mean", "eval_std"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.formats is None:
            own = FOLDER_FORMATS if self.build is None else ("image_folder", "resident")
            object.__setattr__(self, "formats", own)

    @property
    def evaluation_side(self) -> int:
        """Side of the images that evaluation shows, unless the run says otherwise."""
        return self.side or DEFAULT_SIDE

    @property
    def evaluation_statistics(self) -> tuple[Channels, Channels]:
        """Mean and standard deviation of each channel in evaluation."""
        mean, std = self.eval_mean or self.mean, self.eval_std or self.std
        return mean or IMAGENET_MEAN, std or IMAGENET_STD

    def made(self, wanted: Wanted) -> Dataset:
        """The data set itself, by `build`."""
        return _function(self.build)(wanted)

    def counted(self, path: Path) -> int:
        """Number of classes of the training images at `path`, by `count_classes`."""
        return _function(self.count_classes)(path)


def _function(named: Any) -> Callable[..., Any]:
    if isinstance(named, str):
        module, _, attribute = named.partition(":")
        return getattr(import_module(module), attribute)
    return named


_HERE = "solo.data.datasets.named"
_CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
_STL10 = ((0.4914, 0.4823, 0.4466), (0.247, 0.243, 0.261))
# cifar10's statistics serve cifar100 too: solo-learn's published linear accuracies rest on it.
_CIFAR_EVAL = {"eval_mean": (0.4914, 0.4822, 0.4465), "eval_std": (0.247, 0.243, 0.261)}
_CIFAR: dict[str, Any] = {
    "images": (50_000, 10_000),
    "side": 32,
    **_CIFAR_EVAL,
    "small_stem": True,
    "path": "default",
    "in_folders": True,
}
_IMAGENET: dict[str, Any] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}

_BUILT_IN = (
    DatasetInfo(
        "cifar10", 10, mean=_CIFAR10[0], std=_CIFAR10[1], build=f"{_HERE}:cifar10", **_CIFAR
    ),
    DatasetInfo(
        "cifar100",
        100,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        build=f"{_HERE}:cifar100",
        **_CIFAR,
    ),
    DatasetInfo(
        "stl10",
        10,
        images=(105_000, 8_000),
        side=96,
        mean=_STL10[0],
        std=_STL10[1],
        build=f"{_HERE}:stl10",
        path="default",
    ),
    DatasetInfo("imagenet", 1000, **_IMAGENET),
    DatasetInfo("imagenet100", 100, subset="imagenet100_classes.txt", short="im100", **_IMAGENET),
    DatasetInfo("custom", any_images=True),
    DatasetInfo(
        "digits",
        10,
        images=(2_874, 720),  # two renderings of 1,437 and 360 originals
        side=32,
        mean=DIGITS_MEAN,
        std=DIGITS_STD,
        shift=2,
        small_stem=True,
        build=f"{_HERE}:digits",
        path="none",
    ),
    DatasetInfo(
        "voc07",
        images=(5_011, 4_952),
        build=f"{_HERE}:voc07",
        path="default",
        formats=("image_folder",),
        multilabel=True,
        count_classes=f"{_HERE}:voc07_classes",
    ),
)
DATASETS: Registry[DatasetInfo] = Registry("data set", {info.name: info for info in _BUILT_IN})


def register_dataset(info: DatasetInfo) -> DatasetInfo:
    """Make a data set known to every program, as `data.dataset=<its name>`.

    >>> register_dataset(DatasetInfo("pets", num_classes=37, side=64)).name
    'pets'

    Raises:
        ConfigError: another one has that name.
    """
    DATASETS.register(info.name, info)
    return info


def info_of(dataset: str) -> DatasetInfo:
    """The record of a data set.

    Raises:
        ConfigError: there is none; the message has the nearest name.
    """
    if dataset not in DATASETS:
        raise ConfigError(
            f"data.dataset: '{dataset}' is not supported. {did_you_mean(str(dataset), DATASETS)}"
        )
    return DATASETS[dataset]


def known(dataset: Any) -> DatasetInfo:
    """The record of a data set; that of `custom` for a name that nothing is registered for.

    For what reads configurations of finished runs, perhaps of somebody else's data.
    """
    return DATASETS[dataset if dataset in DATASETS else "custom"]


def named(wanted: Callable[[DatasetInfo], Any] = lambda info: True) -> list[str]:
    """Names of the data sets for which `wanted` holds."""
    return [info.name for info in DATASETS.values() if wanted(info)]


def single_label() -> list[str]:
    """Names of the data sets whose images have one label each, or none."""
    return named(lambda info: not info.multilabel)


def class_counts() -> dict[str, int]:
    """Number of classes by name, where it is known without a look at the files."""
    return {i.name: i.num_classes for i in DATASETS.values() if i.num_classes is not None}


def formats_of(data_format: str) -> list[str]:
    """Names of the data sets that go with `data.format=<data_format>`."""
    return named(lambda info: data_format in info.formats)


def pretrain_statistics(
    dataset: str, entry: Mapping[str, Any]
) -> tuple[Sequence[float], Sequence[float]]:
    """Channel mean and standard deviation of views: the dataset's own, else those of the entry of
    `augmentations`, else ImageNet's."""
    info = known(dataset)
    if info.mean is not None and info.std is not None:
        return info.mean, info.std
    return entry.get("mean", IMAGENET_MEAN), entry.get("std", IMAGENET_STD)


def require_dataset(dataset: str) -> str:
    """Return `dataset` if it is the name of a supported data set.

    Raises:
        ConfigError: it is not; the message has the nearest name.
    """
    return info_of(dataset).name
