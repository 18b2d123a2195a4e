# SPDX-License-Identifier: MIT
"""Loading and augmenting image folders with NVIDIA DALI, on the GPU or on the CPU.

Each image is read and decoded once per epoch and all its crops are drawn from that. Every rank
reads its own shard of the same list of files; the order of the list is drawn anew each epoch, the
same on all ranks. Memory stays bounded: files are read, not mapped, and only a few batches wait.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.plugin.base_iterator import LastBatchPolicy

from solo.data.dali_ops import (
    AugWrapper,
    RandomColorJitter,
    RandomGaussianBlur,
    RandomGrayScaleConversion,
    RandomSolarize,
    build_transform_pipeline_dali,
)
from solo.data.loading import mix
from solo.data.pretrain_dataloader import FullTransformPipeline
from solo.data.sources import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    fraction_indices,
    image_files,
    require_folder,
    require_fraction,
)
from solo.data.temp_dali_fix import TempDALIGenericIterator
from solo.errors import ConfigError, DataError, did_you_mean

__all__ = [
    "AugWrapper",
    "ClassificationDALIDataModule",
    "CustomNormalPipelineBuilder",
    "NormalPipelineBuilder",
    "PretrainDALIDataModule",
    "PretrainPipelineBuilder",
    "PretrainWrapper",
    "RandomColorJitter",
    "RandomGaussianBlur",
    "RandomGrayScaleConversion",
    "RandomSolarize",
    "TempDALIGenericIterator",
    "Wrapper",
    "build_transform_pipeline_dali",
]

DATASETS = ("imagenet", "imagenet100", "custom")
READER = "Reader"


def labelled_files(path: str | Path, key: str) -> tuple[list[str], list[int]]:
    """All images of `<path>/<class>/<image>`, sorted, with the position of their class.

    Raises:
        DataError: the folder is missing or has no images.
    """
    folder = require_folder(path, key)
    classes = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    files, labels = [], []
    for label, directory in enumerate(classes):
        names = image_files(directory)
        files += [str(directory / name) for name in names]
        labels += [label] * len(names)
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


class _PipelineBuilder:
    """What the builders share: the files of the dataset, the reader and the call of `pipeline`."""

    def __init__(self, files, labels, batch_size, device, device_id, shard_id, num_shards,
                 num_threads, seed, data_fraction, labelled=True):  # fmt: skip
        _require_device(device)
        fraction = require_fraction(data_fraction)
        if fraction is not None:
            kept = fraction_indices(len(files), labels if labelled else None, fraction)
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
        images = fn.decoders.image(encoded, device=decoder, output_type=types.RGB)
        labels = labels.gpu() if self.device == "gpu" else labels
        return images, fn.cast(labels, device=self.device, dtype=types.INT64)


class NormalPipelineBuilder(_PipelineBuilder):
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

    Raises:
        DataError: the folder is missing or has no images.
        ConfigError: a fraction out of range or an unknown device.
    """

    mean, std = IMAGENET_MEAN, IMAGENET_STD

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
    ):
        files, labels = labelled_files(
            data_path, "data.val_path" if validation else "data.train_path"
        )
        super().__init__(files, labels, batch_size, device, device_id, shard_id, num_shards,
                         num_threads, seed, data_fraction)  # fmt: skip
        self.validation = validation

    @pipeline_def(enable_conditionals=True)
    def _graph(self):
        images, labels = self._read(self.labels, shuffle=not self.validation)
        if self.validation:
            images = fn.resize(
                images, device=self.device, resize_shorter=256, interp_type=types.INTERP_CUBIC
            )
            mirror = 0
        else:
            images = fn.random_resized_crop(
                images, device=self.device, size=(224, 224), random_area=[0.08, 1.0],
                interp_type=types.INTERP_CUBIC,
            )  # fmt: skip
            mirror = fn.random.coin_flip(probability=0.5)
        images = fn.crop_mirror_normalize(
            images,
            device=self.device,
            dtype=types.FLOAT,
            output_layout="CHW",
            crop=(224, 224),
            mean=[255 * m for m in self.mean],
            std=[255 * s for s in self.std],
            mirror=mirror,
        )
        return images, labels


class CustomNormalPipelineBuilder(NormalPipelineBuilder):
    """`NormalPipelineBuilder` for a dataset of one's own: change `mean` and `std` in a subclass."""


class PretrainPipelineBuilder(_PipelineBuilder):
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
    ):
        listed = unlabelled_files if no_labels else labelled_files
        files, labels = listed(data_path, "data.train_path")
        super().__init__(files, labels, batch_size, device, device_id, shard_id, num_shards,
                         num_threads, seed, data_fraction, labelled=not no_labels)  # fmt: skip
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


class PretrainWrapper(TempDALIGenericIterator):
    """Iterator over `[indexes, [view, ...], targets]`, as the torch loaders deliver it.

    Args:
        model_batch_size: images per batch.
        model_rank: rank of this process.
        model_device: device for indexes and targets.
        dataset_size: images of the whole dataset.
        conversion_map: label of each index, for a pipeline that delivers indexes; without it the
            indexes are made up (position in the batch, distinct between ranks).
        args: for DALIGenericIterator.
        kwargs: for DALIGenericIterator; `output_map` ends with "label".
    """

    def __init__(
        self,
        model_batch_size: int,
        model_rank: int,
        model_device: str | torch.device,
        dataset_size: int,
        conversion_map: Sequence[int] | None = None,
        *args: Any,
        **kwargs: Any,
    ):
        self.model_batch_size, self.model_rank = model_batch_size, model_rank
        self.model_device, self.dataset_size = model_device, dataset_size
        self.conversion_map = None
        if conversion_map is not None:
            self.conversion_map = torch.as_tensor(list(conversion_map), device=model_device)
        super().__init__(*args, **kwargs)

    def __next__(self) -> list[Any]:
        batch = super().__next__()[0]
        *views, labels = (batch[name] for name in self.output_map)
        labels = labels.to(self.model_device).flatten().long()
        if self.conversion_map is not None:
            return [labels, views, self.conversion_map[labels]]
        first = self.model_rank * self.model_batch_size
        indexes = torch.arange(first, first + len(labels), device=self.model_device)
        return [indexes, views, labels]


class Wrapper(TempDALIGenericIterator):
    """Iterator over `(images, targets)`.

    Args:
        dataset_size: images of the whole dataset.
        args: for DALIGenericIterator.
        kwargs: for DALIGenericIterator; `output_map` is `["x", "label"]`.
    """

    def __init__(self, dataset_size: int, *args: Any, **kwargs: Any):
        self.dataset_size = dataset_size
        super().__init__(*args, **kwargs)

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor]:
        batch = super().__next__()[0]
        images, labels = (batch[name] for name in self.output_map)
        if not len(images):  # this rank's shard ended a batch before the others'
            return self.__next__()
        return images, labels.flatten().long()


class _DALIDataModule(pl.LightningDataModule):
    """Ranks, devices and the making of iterators, shared by both data modules."""

    def __init__(self, dataset: str, batch_size: int, num_workers: int, dali_device: str):
        super().__init__()
        if dataset not in DATASETS:
            raise ConfigError(
                f"data.format=dali does not go with data.dataset='{dataset}'. "
                f"{did_you_mean(dataset, DATASETS)}"
            )
        _require_device(dali_device)
        self.dataset, self.dali_device = dataset, dali_device
        self.batch_size, self.num_workers = batch_size, max(1, num_workers)

    def setup(self, stage: str | None = None) -> None:
        """Learn the ranks from the trainer.

        Raises:
            ConfigError: `dali.device=gpu` on a machine without one.
        """
        self.device_id = self.trainer.local_rank
        self.shard_id = self.trainer.global_rank
        self.num_shards = self.trainer.world_size
        if self.dali_device == "gpu" and not torch.cuda.is_available():
            raise ConfigError("dali.device=gpu, but there is no CUDA GPU; set dali.device=cpu.")
        on_gpu = torch.cuda.is_available() and self.dali_device == "gpu"
        self.device = torch.device("cuda", self.device_id) if on_gpu else torch.device("cpu")

    def _placement(self) -> dict[str, Any]:
        """Arguments that every builder gets; the seed changes when a run is resumed."""
        run_seed = int(os.environ.get("PL_GLOBAL_SEED", 12))  # must be the same on all ranks
        return {
            "batch_size": self.batch_size,
            "device": self.dali_device,
            "device_id": self.device_id,
            "shard_id": self.shard_id,
            "num_shards": self.num_shards,
            "num_threads": self.num_workers,
            "seed": mix(run_seed, self.trainer.current_epoch) & 0xFFFFFF,
        }

    def _pipeline(self, builder: _PipelineBuilder):
        seed = mix(builder.seed, self.shard_id) & 0x7FFFFFFF  # no two ranks draw the same crops
        pipe = builder.pipeline(
            batch_size=builder.batch_size,
            num_threads=builder.num_threads,
            device_id=builder.device_id,
            seed=seed,
        )
        pipe.build()
        return pipe

    def _require_full_batch(self, n_files: int) -> None:
        if n_files // self.num_shards < self.batch_size:
            raise ConfigError(
                f"optimizer.batch_size={self.batch_size} is larger than one rank's part of the "
                f"training set ({n_files} images for {self.num_shards} ranks), so no batch would "
                "ever be full."
            )


class PretrainDALIDataModule(_DALIDataModule):
    """Pretraining batches `[indexes, [view, ...], targets]`.

    The indexes are always the positions of the files in the sorted dataset: the same file has the
    same index on every rank and in every epoch. Hence `encode_indexes_into_labels` changes nothing
    here; it is accepted because configurations have it.

    Args:
        dataset: imagenet, imagenet100 or custom.
        train_data_path: image folder, flat when `no_labels`.
        transforms: see `PretrainPipelineBuilder`.
        num_large_crops: crops of the first size.
        num_small_crops: crops of the other size.
        batch_size: images per batch and per rank.
        num_workers: threads of the pipeline.
        no_labels: the folder is flat, all targets are -1.
        data_fraction: part of the images to keep, between 0 and 1; -1 keeps all.
        dali_device: "gpu" or "cpu".
        encode_indexes_into_labels: see above.

    Raises:
        ConfigError: another dataset or device.
    """

    def __init__(
        self,
        dataset: str,
        train_data_path: str | Path,
        transforms: Callable | Sequence[Callable],
        num_large_crops: int,
        num_small_crops: int,
        batch_size: int,
        num_workers: int = 4,
        no_labels: bool = False,
        data_fraction: float = -1.0,
        dali_device: str = "gpu",
        encode_indexes_into_labels: bool = False,
    ):
        super().__init__(dataset, batch_size, num_workers, dali_device)
        self.train_data_path, self.transforms = Path(train_data_path), transforms
        self.num_large_crops, self.num_small_crops = num_large_crops, num_small_crops
        self.no_labels, self.data_fraction = no_labels, data_fraction
        self.encode_indexes_into_labels = encode_indexes_into_labels

    @staticmethod
    def add_and_assert_specific_cfg(cfg):
        """Fill in `dali.device` and `dali.encode_indexes_into_labels`; return `cfg`.

        Raises:
            ConfigError: the device is neither gpu nor cpu.
        """
        cfg = _add_dali_device(cfg)
        _add_default(cfg, "dali.encode_indexes_into_labels", False)
        return cfg

    def train_dataloader(self) -> PretrainWrapper:
        """This rank's iterator; the last incomplete batch is dropped.

        Raises:
            ConfigError: this rank's part of the dataset does not fill one batch.
            DataError: the folder is missing or has no images.
        """
        builder = PretrainPipelineBuilder(
            self.train_data_path,
            transforms=self.transforms,
            no_labels=self.no_labels,
            encode_indexes_into_labels=True,
            data_fraction=self.data_fraction,
            **self._placement(),
        )
        self._require_full_batch(len(builder.files))
        output_map = [
            *(f"large{i}" for i in range(self.num_large_crops)),
            *(f"small{i}" for i in range(self.num_small_crops)),
            "label",
        ]
        return PretrainWrapper(
            model_batch_size=self.batch_size,
            model_rank=self.shard_id,
            model_device=self.device,
            dataset_size=len(builder.files),
            conversion_map=builder.conversion_map,
            pipelines=self._pipeline(builder),
            output_map=output_map,
            reader_name=READER,
            last_batch_policy=LastBatchPolicy.DROP,
            auto_reset=True,
        )


class ClassificationDALIDataModule(_DALIDataModule):
    """Labelled batches `(images, targets)` for linear evaluation and fine-tuning.

    Args:
        dataset: imagenet, imagenet100 or custom.
        train_data_path: image folder.
        val_data_path: image folder.
        batch_size: images per batch and per rank.
        num_workers: threads of a pipeline.
        data_fraction: part of the training images to keep, between 0 and 1; -1 keeps all.
        dali_device: "gpu" or "cpu".

    Raises:
        ConfigError: another dataset or device.
    """

    def __init__(
        self,
        dataset: str,
        train_data_path: str | Path,
        val_data_path: str | Path,
        batch_size: int,
        num_workers: int = 4,
        data_fraction: float = -1.0,
        dali_device: str = "gpu",
    ):
        super().__init__(dataset, batch_size, num_workers, dali_device)
        self.train_data_path, self.val_data_path = Path(train_data_path), Path(val_data_path)
        self.data_fraction = data_fraction
        custom = dataset == "custom"
        self.pipeline_class = CustomNormalPipelineBuilder if custom else NormalPipelineBuilder

    @staticmethod
    def add_and_assert_specific_cfg(cfg):
        """Fill in `dali.device`; return `cfg`.

        Raises:
            ConfigError: the device is neither gpu nor cpu.
        """
        return _add_dali_device(cfg)

    def train_dataloader(self) -> TempDALIGenericIterator:
        """This rank's iterator; the last incomplete batch is dropped."""
        builder = self.pipeline_class(
            self.train_data_path, data_fraction=self.data_fraction, **self._placement()
        )
        self._require_full_batch(len(builder.files))
        return self._wrapped(builder, LastBatchPolicy.DROP)

    def val_dataloader(self) -> TempDALIGenericIterator:
        """This rank's iterator over its part of all validation images, in order."""
        builder = self.pipeline_class(self.val_data_path, validation=True, **self._placement())
        return self._wrapped(builder, LastBatchPolicy.PARTIAL)

    def _wrapped(self, builder: _PipelineBuilder, policy: LastBatchPolicy) -> Wrapper:
        return Wrapper(
            dataset_size=len(builder.files),
            pipelines=self._pipeline(builder),
            output_map=["x", "label"],
            reader_name=READER,
            last_batch_policy=policy,
            auto_reset=True,
        )


def _require_device(device: str) -> None:
    if device not in ("cpu", "gpu"):
        hint = did_you_mean(device, ("cpu", "gpu"))
        raise ConfigError(f"dali.device must be gpu or cpu, got '{device}'. {hint}")


def _add_default(cfg, key: str, default: Any) -> None:
    from omegaconf import OmegaConf, open_dict

    with open_dict(cfg):
        if OmegaConf.select(cfg, key) is None:
            OmegaConf.update(cfg, key, default, force_add=True)


def _add_dali_device(cfg):
    _add_default(cfg, "dali.device", "gpu")
    _require_device(cfg.dali.device)
    return cfg
