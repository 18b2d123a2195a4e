# SPDX-License-Identifier: MIT
"""`data.format: webdataset`: images out of tar files, for file systems that dislike small files.

A sample is read by its place in the shard, so that everything else is as with image folders: what
is drawn for an image depends on seed, epoch and image alone, the indexes are the same on all
ranks, a fraction or unreadable images can be left out, and a resumed run is fed like a straight
one. Only the order is made for shards: a process stays with a few of them at a time.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import Dataset
from torch.utils.data.distributed import DistributedSampler

from solo.data.datasets.images import ReadError, decode_image
from solo.data.shards.index import read_shards
from solo.errors import DataError
from solo.seeding import mix

WINDOW = 16  # shards whose images are mixed with each other
OPEN_FILES = 2 * WINDOW  # of a process, as two windows may meet in a batch


class ShardSampler(DistributedSampler):
    """Random order that stays with a few shards at a time, dealt out to the ranks in equal parts.

    The shards of an epoch are shuffled and taken `WINDOW` at a time (fewer where a rank has fewer);
    images are shuffled within that. Each rank gets a contiguous part of the result; what does not
    divide among them is left out, in every epoch something else.
    """

    def __init__(self, data_source: ShardDataset):
        super().__init__(data_source, num_replicas=1, rank=0, seed=torch.initial_seed())
        self.dataset: ShardDataset = data_source

    def _look_around(self) -> None:
        """The sampler is made before there are other processes."""
        if dist.is_available() and dist.is_initialized():
            self.num_replicas, self.rank = dist.get_world_size(), dist.get_rank()

    def __len__(self) -> int:
        self._look_around()
        return len(self.dataset) // self.num_replicas

    def __iter__(self) -> Iterator[int]:
        size, order = len(self), self.order()
        self.epoch += 1  # unless Lightning sets it
        yield from order[self.rank * size : (self.rank + 1) * size]

    def order(self) -> list[int]:
        """The indexes of all samples in the order of the present epoch."""
        generator = torch.Generator().manual_seed(mix(self.seed, self.epoch))
        shards = self.dataset.places[:, 0]
        count = int(shards.max()) + 1
        place_of_shard = torch.randperm(count, generator=generator).numpy()
        window = max(1, min(WINDOW, count // self.num_replicas))
        lottery = torch.rand(len(shards), generator=generator, dtype=torch.float64).numpy()
        return np.lexsort((lottery, place_of_shard[shards] // window)).tolist()


class ShardDataset(Dataset):
    """Items `(image, label)` of WebDataset shards; the label is -1 where there is none.

    Args:
        path: folder with `*.tar`, or a pattern such as `imagenet/train-*.tar`.
        transform: applied to the image.
        key: configuration key that holds `path`, for messages.
        decode: from bytes and a name to an image, `decode_image` or `decode_pixels`.
        labels: `wanted`, `needed` (an error without them) or `ignored`.
        num_classes: labels must lie below it, None to take them as they are.

    Attributes:
        places: see `solo.data.shards.ShardIndex`.
        labels: (N,) int64, or None.
        classes: their names; numbers where the shards do not say.

    Raises:
        DataError: see `solo.data.shards.read_shards`; or there are no labels, or too large ones.
        ReadError: while iterating: an image is broken.
    """

    sampler_class = ShardSampler

    def __init__(
        self,
        path: str | Path,
        transform: Callable | None = None,
        key: str = "data.train_path",
        decode: Callable = decode_image,
        labels: str = "wanted",
        num_classes: int | None = None,
    ):
        index = read_shards(path, key)
        self.transform, self.decode = transform, decode
        self.shards, self.places = index.shards, index.places
        self.labels = None if labels == "ignored" else index.labels
        self.classes = index.classes
        self._files: OrderedDict[int, int] = OrderedDict()
        self._process = os.getpid()
        if labels == "needed" and self.labels is None:
            raise DataError(
                f"{key}: the samples in '{path}' have no labels: each needs a member '<key>.cls' "
                "with the number of its class beside its image."
            )
        if num_classes and self.labels is not None and self.labels.max() >= num_classes:
            raise DataError(
                f"{key}: there is a label {self.labels.max()} in '{path}', but {num_classes} "
                "classes count from 0: check data.dataset, or make the shards anew."
            )

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        shard, first, size = (int(n) for n in self.places[index])
        encoded = self._read(shard, size, first)
        if len(encoded) < size:
            raise ReadError(f"Cannot read '{self.shards[shard]}': it became shorter meanwhile.")
        image = self.decode(encoded, self._name(shard, first))
        label = -1 if self.labels is None else int(self.labels[index])
        return (self.transform(image) if self.transform else image), label

    def _read(self, shard: int, size: int, first: int) -> bytes:
        """Bytes of a shard; its file stays open, as opening is what is slow on shared disks."""
        if self._process != os.getpid():
            self._files, self._process = OrderedDict(), os.getpid()
        try:
            if shard not in self._files:
                self._files[shard] = os.open(self.shards[shard], os.O_RDONLY)
            self._files.move_to_end(shard)
            if len(self._files) > OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
            return os.pread(self._files[shard], size, first)
        except OSError as error:
            raise ReadError(f"Cannot read '{self.shards[shard]}': {error}.") from error

    def _name(self, shard: int, first: int) -> str:
        """Shard and member, for messages (the header lies before the member)."""
        header = self._read(shard, 512, first - 512)
        return f"{self.shards[shard]}:{header[:100].rstrip(bytes(1)).decode(errors='replace')}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": OrderedDict()}
