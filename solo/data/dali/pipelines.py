# SPDX-License-Identifier: MIT
"""DALI pipelines over image folders: which files, in which order, decoded and augmented how.

Each image is read and decoded once per epoch and all its crops are drawn from that. Every rank
reads its own shard of the same list of files; the order of the list is drawn anew each epoch, the
same on all ranks. Memory stays bounded: files are read, not mapped, and only a few batches wait.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nvidia.dali import fn, pipeline_def, types

from solo.data.catalogue import DEFAULT_SIDE, IMAGENET_MEAN, IMAGENET_STD, TRAIN_KEY, VAL_KEY
from solo.data.dali import geometry
from solo.data.datasets.folders import (
    class_files,
    class_folders,
    image_files,
    require_folder,
    require_fraction,
)
from solo.data.datasets.images import require_exif
from solo.data.datasets.splits import Split, draw
from solo.data.datasets.unreadable import readable_positions
from solo.data.pretrain_dataloader import FullTransformPipeline
from solo.data.shown import CROP_MIN_SCALE, Shown
from solo.errors import ConfigError, DataError, did_you_mean
from solo.seeding import mix

READER = "Reader"


def require_device(device: str) -> None:
    """Raise ConfigError unless `device` is cpu or gpu."""
    if device not in ("cpu", "gpu"):
        hint = did_you_mean(device, ("cpu", "gpu"))
        raise ConfigError(f"dali.device must be gpu or cpu, got '{device}'. {hint}")


def labelled_files(path: str | Path, key: str) -> tuple[list[str], list[int]]:
    """All images of `<path>/<class>/<image>`, sorted, with the position of their class.

    Raises:
        DataError: the folder is missing or has no images.
    """
    folder = require_folder(path, key)
    files, labels = [], []
    for label, name in enumerate(class_folders(folder)):
        found = class_files(folder, name)
        files += found
        labels += [label] * len(found)
    if not files:
        hint = " For images without labels set data.no_labels=True." if image_files(folder) else ""
        raise DataError(f"{key}: '{folder}' has no images in class folders.{hint}")
    return files, labels


def unlabelled_files(path: str | Path, key: str) -> tuple[list[str], list[int]]:
    """All images directly in `path`, sorted, with labels -1.

    Raises:
        DataError: the folder is missing or has no images.
    """
    folder = require_folder(path, key)
    files = [str(folder / name) for name in image_files(folder)]
    if not files:
        raise DataError(f"{key}: '{folder}' holds no images; with data.no_labels=True they lie "
                        "directly in it.")  # fmt: skip
    return files, [-1] * len(files)


class PipelineBuilder:
    """What the builders share: the files of the dataset, the reader and the call of `pipeline`."""

    def __init__(self, files, labels, batch_size, device, device_id, shard_id, num_shards,
                 num_threads, seed, data_fraction, labelled=True, split=None,
                 exif="ignore", fraction_of="images", unreadable=None):  # fmt: skip
        require_device(device)
        self.exif = require_exif(exif)
        fraction, self.split = require_fraction(data_fraction), None
        if fraction is not None:
            known = labels if labelled else None
            self.split = split or draw(len(files), known, fraction, fraction_of)
            self.split.require(len(files), known, fraction, fraction_of)
            kept = self.split.indices
            files, labels = [files[i] for i in kept], [labels[i] for i in kept]
        if unreadable is not None:  # folder and key, for the message
            kept = readable_positions(files, num_threads, *unreadable)
            files, labels = [files[i] for i in kept], [labels[i] for i in kept]
        self.files, self.labels = files, labels
        self.batch_size, self.num_threads, self.device = batch_size, num_threads, device
        self.device_id, self.shard_id, self.num_shards = device_id, shard_id, num_shards
        self.shuffle_seed = seed  # the same on all ranks, so that their shards do not overlap
        self.seed = seed + (device_id or 0)

    def pipeline(self, **options: Any):
        """The DALI pipeline; the caller builds it.

        Args:
            options: batch_size, num_threads, device_id, seed, or any other argument of a DALI
                pipeline; those of the constructor where left out. On the CPU `device_id` is
                ignored, so that no GPU driver is needed.
        """
        defaults = {
            "batch_size": self.batch_size,
            "num_threads": self.num_threads,
            "device_id": self.device_id,
            "seed": self.seed,
        }
        options = {**defaults, **options}
        if self.device == "cpu":
            options["device_id"] = None
        pipe = self._graph(**options)
        pipe.image_paths = self.files  # lets the iterator name a broken one
        return pipe

    def _graph(self, **options: Any):
        raise NotImplementedError

    def _read(self, labels: Sequence[int], shuffle: bool):
        """Decoded images (H, W, 3) and int64 labels (1,), this rank's shard of them."""
        order: dict[str, Any] = {"stick_to_shard": True}
        if shuffle:
            seed = mix(self.shuffle_seed) & 0x7FFFFFFF
            order = {"shuffle_after_epoch": True, "shuffle_after_epoch_seed": seed}
        encoded, labels = fn.readers.file(
            files=self.files,
            labels=list(labels),
            name=READER,
            shard_id=self.shard_id,
            num_shards=self.num_shards,
            pad_last_batch=True,
            prefetch_queue_depth=2,
            dont_use_mmap=True,
            **order,
        )
        decoder = "mixed" if self.device == "gpu" else "cpu"
        images = fn.decoders.image(
            encoded,
            device=decoder,
            output_type=types.RGB,
            adjust_orientation=self.exif == "apply",
        )
        labels = labels.gpu() if self.device == "gpu" else labels
        return images, fn.cast(labels, device=self.device, dtype=types.INT64)


class NormalPipelineBuilder(PipelineBuilder):
    """One labelled 224x224 image per sample, for linear evaluation and fine-tuning.

    Args:
        data_path: image folder `<data_path>/<class>/<image>`.
        batch_size: images per batch.
        device: "cpu" or "gpu", where decoding and augmentation run.
        validation: centre crops in order, instead of random crops and flips in random order.
        device_id: GPU of this process.
        shard_id: rank of this process.
        num_shards: number of processes.
        num_threads: threads of the pipeline.
        seed: of order and augmentation.
        data_fraction: part of the images to keep, between 0 and 1; -1 keeps all.
        split: that part as an earlier run has drawn it; None draws.
        exif: `apply` turns images as their EXIF orientation says, `ignore` does not.
        images: size and statistics, see `solo.data.shown`; None: those of the class.
        fraction_of: `images` keeps that part of every class, `classes` all of that many classes.
        skip_unreadable: broken files are counted and left out.
        crop_min_scale: smallest share of a training image's area that a random crop shows.

    Raises:
        DataError: the folder is missing or has no images.
        ConfigError: a fraction out of range or an unknown device.
    """

    size, mean, std = DEFAULT_SIDE, IMAGENET_MEAN, IMAGENET_STD

    def __init__(
        self,
        data_path: str | Path,
        batch_size: int,
        device: str,
        validation: bool = False,
        device_id: int | None = 0,
        shard_id: int = 0,
        num_shards: int = 1,
        num_threads: int = 4,
        seed: int = 12,
        data_fraction: float = -1.0,
        split: Split | None = None,
        exif: str = "ignore",
        images: Shown | None = None,
        fraction_of: str = "images",
        skip_unreadable: bool = False,
        crop_min_scale: float = CROP_MIN_SCALE,
    ):
        if images is not None:
            self.size, self.mean, self.std = images.size, images.mean, images.std
        key = VAL_KEY if validation else TRAIN_KEY
        files, labels = labelled_files(data_path, key)
        super().__init__(files, labels, batch_size, device, device_id, shard_id, num_shards,
                         num_threads, seed, data_fraction, split=split, exif=exif,
                         fraction_of=fraction_of,
                         unreadable=(data_path, key) if skip_unreadable else None)  # fmt: skip
        self.validation = validation
        self.crop_scale = (crop_min_scale, 1.0)

    @pipeline_def(enable_conditionals=True)
    def _graph(self):
        images, labels = self._read(self.labels, shuffle=not self.validation)
        if self.validation:
            images = geometry.shorter_side_resized(
                images, round(self.size * 256 / 224), types.INTERP_LINEAR
            )
            images = geometry.center_crop(images, self.size)
            mirror = 0
        else:
            u = geometry.drawn_box()
            images = geometry.resized_crop(
                images, u, self.size, self.crop_scale, "center", interpolation=types.INTERP_LINEAR
            )
            mirror = fn.random.coin_flip(probability=0.5)
        images = fn.crop_mirror_normalize(
            images,
            device=self.device,
            dtype=types.FLOAT,
            output_layout="CHW",
            mean=[255 * m for m in self.mean],
            std=[255 * s for s in self.std],
            mirror=mirror,
        )
        return images, labels


class CustomNormalPipelineBuilder(NormalPipelineBuilder):
    """`NormalPipelineBuilder` for a dataset of one's own: change `mean` and `std` in a subclass."""


class PretrainPipelineBuilder(PipelineBuilder):
    """All crops of each image, for pretraining.

    Args:
        data_path: image folder, `<data_path>/<class>/<image>`, or flat when `no_labels`.
        batch_size: images per batch.
        device: "cpu" or "gpu", where decoding and augmentation run.
        transforms: from decoded images to the list of crops: a FullTransformPipeline of
            `build_transform_pipeline_dali`, or a list for one.
        random_shuffle: draw a new order of the whole dataset each epoch.
        device_id: GPU of this process.
        shard_id: rank of this process.
        num_shards: number of processes.
        num_threads: threads of the pipeline.
        seed: of order and augmentation.
        no_labels: the folder is flat, all labels are -1.
        encode_indexes_into_labels: deliver the position of the file in place of its label.
        data_fraction: part of the images to keep, between 0 and 1; -1 keeps all.
        exif: `apply` turns images as their EXIF orientation says, `ignore` does not.
        fraction_of: `images` keeps that part of every class, `classes` all of that many classes.
        skip_unreadable: broken files are counted and left out.

    Attributes:
        conversion_map: list, label of each position; only with `encode_indexes_into_labels`.
        files: list, path of each position; the same on all ranks.

    Raises:
        DataError: the folder is missing or has no images.
        ConfigError: a fraction out of range or an unknown device.
    """

    def __init__(
        self,
        data_path: str | Path,
        batch_size: int,
        device: str,
        transforms: Callable | Sequence[Callable],
        random_shuffle: bool = True,
        device_id: int | None = 0,
        shard_id: int = 0,
        num_shards: int = 1,
        num_threads: int = 4,
        seed: int = 12,
        no_labels: bool = False,
        encode_indexes_into_labels: bool = False,
        data_fraction: float = -1.0,
        exif: str = "ignore",
        fraction_of: str = "images",
        skip_unreadable: bool = False,
    ):
        listed = unlabelled_files if no_labels else labelled_files
        files, labels = listed(data_path, TRAIN_KEY)
        unreadable = (data_path, TRAIN_KEY) if skip_unreadable else None
        super().__init__(files, labels, batch_size, device, device_id, shard_id, num_shards,
                         num_threads, seed, data_fraction, labelled=not no_labels,
                         exif=exif, fraction_of=fraction_of, unreadable=unreadable)  # fmt: skip
        self.transforms = transforms if callable(transforms) else FullTransformPipeline(transforms)
        self.random_shuffle = random_shuffle
        self.encode_indexes_into_labels = encode_indexes_into_labels
        if encode_indexes_into_labels:
            self.conversion_map = list(self.labels)

    @pipeline_def(enable_conditionals=True)
    def _graph(self):
        labels = range(len(self.files)) if self.encode_indexes_into_labels else self.labels
        images, labels = self._read(labels, shuffle=self.random_shuffle)
        return (*self.transforms(images), labels)

    def __repr__(self) -> str:
        return str(self.transforms)
