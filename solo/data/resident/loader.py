# SPDX-License-Identifier: MIT
"""`data.format: resident`: all images stay in memory, views are made of whole batches at once.

No worker processes, no decoding while training: epochs start at once, and the views come from
`solo.data.views.batched` on the device that trains. Batches are
`[indexes, [view, ...], targets]` and
come in the order of the ordinary loaders, so that methods cannot tell the difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from solo.data.datasets.folders import stored_format
from solo.data.datasets.splits import Split
from solo.data.loading import EpochSampler, SeededLoader
from solo.data.pretrain_dataloader import prepare_datasets, require_full_batch
from solo.data.resident.images import resident_images
from solo.data.resident.memory import fits_on
from solo.data.views.batched import BatchedViews
from solo.monitoring.profiling import AUGMENTATION, section
from solo.seeding import mix


class ResidentDataset(Dataset):
    """Images in memory and the views that are made of them.

    Args:
        images: (N, 3, H, W) uint8.
        targets: N labels, or None for images without labels (-1 in batches).
        views: makes the views of a batch.

    Attributes:
        device: where views are made.
        split: the part of a data set that the images are, None for all of it.
    """

    split: Split | None = None

    def __init__(self, images: Tensor, targets: list[int] | None, views: BatchedViews):
        self.images, self.targets, self.views = images, targets, views
        labels = torch.full((len(images),), -1) if targets is None else torch.tensor(targets)
        self.labels = labels.long()
        self.to(torch.device("cpu"))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[int, Tensor, int]:
        return index, self.images[index], int(self.labels[index])

    def to(self, device: torch.device) -> ResidentDataset:
        """Make views on `device` from now on; the images move there if they leave room."""
        self.device = device
        self.views.to(device)
        if fits_on(device, self.images.numel()):
            self.images = self.images.to(device)
        self._generator = torch.Generator(device=device)
        return self

    def batch(self, indexes: list[int], seed: int) -> list[Any]:
        """`[indexes (N,), [view (N, 3, size, size), ...], targets (N,)]`; the views on the device.

        Args:
            indexes: of the images.
            seed: the views depend on it, on the images and on nothing else.
        """
        chosen = torch.tensor(indexes)
        if self.images.device == self.device:
            images = self.images[chosen.to(self.device, non_blocking=True)]
        else:
            images = self.images[chosen]
            images = images.pin_memory() if self.device.type == "cuda" else images
            images = images.to(self.device, non_blocking=True)
        with section(AUGMENTATION):
            views = self.views(images, self._generator.manual_seed(seed))
        return [chosen, views, self.labels[chosen]]


class ResidentLoader(SeededLoader):
    """Batches of a `ResidentDataset`, each with views that follow from seed, epoch, rank and step.

    A DataLoader, so that Lightning deals its images out to the ranks as it does for any other.
    """

    def __iter__(self) -> Iterator[list[Any]]:
        pass_seed, rank = self.next_pass_seed(), getattr(self.sampler, "rank", 0)
        first, self.first_batch = self.first_batch, 0
        for step, indexes in enumerate(self.batch_sampler):
            if step >= first:
                yield self.dataset.batch(indexes, mix(pass_seed, rank, step))


class ResidentData(LightningDataModule):
    """A resident training set, on the trainer's device, and an ordinary validation loader.

    Args:
        dataset: the training images.
        batch_size: images per batch and per process.
        val_loader: validation images, None where there are none.

    Raises:
        ConfigError: the dataset does not fill one batch.
    """

    def __init__(
        self, dataset: ResidentDataset, batch_size: int, val_loader: DataLoader | None = None
    ):
        super().__init__()
        require_full_batch(dataset, batch_size)
        self.dataset, self.batch_size, self.split = dataset, batch_size, dataset.split
        if val_loader is not None:  # Lightning validates where there is such a method
            self.val_dataloader = lambda: val_loader

    def setup(self, stage: str | None = None) -> None:
        """Move to the device of this process."""
        self.dataset.to(self.trainer.strategy.root_device)

    def train_dataloader(self) -> ResidentLoader:
        """Shuffled by seed and epoch, without the last incomplete batch."""
        return ResidentLoader(
            self.dataset,
            batch_size=self.batch_size,
            sampler=EpochSampler(self.dataset),
            drop_last=True,
        )


def prepare_resident(
    dataset: str,
    views: BatchedViews,
    train_data_path: str | Path | None = None,
    size: int | None = None,
    skip_unreadable: bool = False,
    threads: int = 4,
    processes: int = 1,
    **source: Any,
) -> ResidentDataset:
    """Read a training set into memory, decoded, for views made on the device.

    Args:
        dataset: any name that `prepare_datasets` takes.
        views: from `solo.data.views.batched.build_views`.
        train_data_path: folder, or H5 file.
        size: side of the images in memory, see `resident_images`.
        skip_unreadable: leave broken files out instead of stopping.
        threads: that decode files.
        processes: of this machine, each of which needs the memory.
        source: `no_labels`, `data_fraction`, `fraction_of`, `download`, `exif`, `value_range` of
            `prepare_datasets`.

    Raises:
        ConfigError: unknown dataset, or a fraction out of range.
        DataError: the data is missing or broken, has several sizes or does not fit in memory.
    """
    read = prepare_datasets(
        dataset,
        None,
        train_data_path=train_data_path,
        data_format=stored_format("resident", train_data_path),
        **source,
    )
    where = dataset if train_data_path is None else f"'{train_data_path}'"
    images, targets = resident_images(read, where, size, skip_unreadable, threads, processes)
    made = ResidentDataset(images, targets, views)
    made.split = getattr(read, "split", None)
    return made
