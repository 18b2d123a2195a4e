# SPDX-License-Identifier: MIT
"""NVIDIA DALI in place of torch's loaders, on the GPU or on the CPU: iterators and data modules.

The pipelines are in `dali_pipelines`, the augmentations in `dali_ops`; all public names of the
three are importable from here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from nvidia.dali.plugin.base_iterator import LastBatchPolicy

from solo.data.catalogue import formats_of, info_of
from solo.data.dali.operations import (
    AugWrapper,
    RandomColorJitter,
    RandomGaussianBlur,
    RandomGrayScaleConversion,
    RandomSolarize,
    build_transform_pipeline_dali,
)
from solo.data.dali.pipelines import (
    READER,
    CustomNormalPipelineBuilder,
    NormalPipelineBuilder,
    PipelineBuilder,
    PretrainPipelineBuilder,
    require_device,
)
from solo.data.datasets.images import require_exif
from solo.data.datasets.splits import Split
from solo.data.shown import CROP_MIN_SCALE, Shown
from solo.data.temp_dali_fix import TempDALIGenericIterator
from solo.data.views.long_images import file_sizes, warn_of_long_images
from solo.errors import ConfigError, did_you_mean
from solo.seeding import mix

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
    """Iterator of a DALI pipeline over batches `(images, targets)`.

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

    def __init__(
        self, dataset: str, batch_size: int, num_workers: int, dali_device: str, exif: str
    ):
        super().__init__()
        names = formats_of("dali")
        if dataset not in names:
            raise ConfigError(
                f"data.format=dali does not go with data.dataset='{dataset}'. "
                f"{did_you_mean(dataset, names)}"
            )
        require_device(dali_device)
        self.dataset, self.dali_device = dataset, dali_device
        self.batch_size, self.num_workers = batch_size, max(1, num_workers)
        self.exif = require_exif(exif)

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
            "exif": self.exif,
            "seed": mix(run_seed, self.trainer.current_epoch) & 0xFFFFFF,
        }

    def _pipeline(self, builder: PipelineBuilder):
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
    """Data module whose training batches `[indexes, [view, ...], targets]` come from DALI.

    The indexes are always the positions of the files in the sorted dataset: the same file has the
    same index on every rank and in every epoch. Hence `encode_indexes_into_labels` changes nothing
    here; it is accepted because configurations have it.

    Args:
        dataset: name of a data set of images in files.
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
        exif: `apply` turns images as their EXIF orientation says, `ignore` does not.
        augmentations: the entries that `transforms` were made of, to warn of long images.
        fraction_of: `images` keeps that part of every class, `classes` all of that many classes.
        skip_unreadable: broken files are counted and left out.

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
        exif: str = "ignore",
        augmentations: Sequence[Mapping[str, Any]] = (),
        fraction_of: str = "images",
        skip_unreadable: bool = False,
    ):
        super().__init__(dataset, batch_size, num_workers, dali_device, exif)
        self.augmentations = augmentations
        self.part = {"fraction_of": fraction_of, "skip_unreadable": skip_unreadable}
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
            **self.part,
            **self._placement(),
        )
        self._require_full_batch(len(builder.files))
        if self.augmentations:
            warn_of_long_images(file_sizes(builder.files), self.augmentations)
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
        dataset: name of a data set of images in files.
        train_data_path: image folder.
        val_data_path: image folder.
        batch_size: images per batch and per rank.
        num_workers: threads of a pipeline.
        data_fraction: part of the training images to keep, between 0 and 1; -1 keeps all.
        dali_device: "gpu" or "cpu".
        split: the part as an earlier run has drawn it; None draws.
        exif: `apply` turns images as their EXIF orientation says, `ignore` does not.
        images: size and statistics, see `solo.data.shown`; None: those of the pipeline's class.
        fraction_of: `images` keeps that part of every class, `classes` all of that many classes.
        skip_unreadable: broken files are counted and left out of both sets.
        crop_min_scale: smallest share of a training image's area that a random crop shows.

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
        split: Split | None = None,
        exif: str = "ignore",
        images: Shown | None = None,
        fraction_of: str = "images",
        skip_unreadable: bool = False,
        crop_min_scale: float = CROP_MIN_SCALE,
    ):
        super().__init__(dataset, batch_size, num_workers, dali_device, exif)
        self.crop_min_scale = crop_min_scale
        self.images, self.fraction_of, self.skip_unreadable = images, fraction_of, skip_unreadable
        self.train_data_path, self.val_data_path = Path(train_data_path), Path(val_data_path)
        self.data_fraction, self.split = data_fraction, split
        custom = info_of(dataset).any_images
        self.pipeline_class = CustomNormalPipelineBuilder if custom else NormalPipelineBuilder

    @staticmethod
    def add_and_assert_specific_cfg(cfg):
        """Fill in the default of `dali.device` in place and return `cfg`.

        Raises:
            ConfigError: the device is neither gpu nor cpu.
        """
        return _add_dali_device(cfg)

    def train_dataloader(self) -> TempDALIGenericIterator:
        """This rank's iterator; the last incomplete batch is dropped."""
        part = {"data_fraction": self.data_fraction, "fraction_of": self.fraction_of}
        builder = self.pipeline_class(
            self.train_data_path,
            split=self.split,
            images=self.images,
            skip_unreadable=self.skip_unreadable,
            crop_min_scale=self.crop_min_scale,
            **part,
            **self._placement(),
        )
        self.split = builder.split
        self._require_full_batch(len(builder.files))
        return self._wrapped(builder, LastBatchPolicy.DROP)

    def val_dataloader(self) -> TempDALIGenericIterator:
        """This rank's iterator over its part of all validation images, in order."""
        builder = self.pipeline_class(
            self.val_data_path,
            validation=True,
            images=self.images,
            skip_unreadable=self.skip_unreadable,
            **self._placement(),
        )
        return self._wrapped(builder, LastBatchPolicy.PARTIAL)

    def _wrapped(self, builder: PipelineBuilder, policy: LastBatchPolicy) -> Wrapper:
        return Wrapper(
            dataset_size=len(builder.files),
            pipelines=self._pipeline(builder),
            output_map=["x", "label"],
            reader_name=READER,
            last_batch_policy=policy,
            auto_reset=True,
        )


def _add_default(cfg, key: str, default: Any) -> None:
    from omegaconf import OmegaConf, open_dict

    with open_dict(cfg):
        if OmegaConf.select(cfg, key) is None:
            OmegaConf.update(cfg, key, default, force_add=True)


def _add_dali_device(cfg):
    _add_default(cfg, "dali.device", "gpu")
    require_device(cfg.dali.device)
    return cfg
