# SPDX-License-Identifier: MIT
"""DataLoaders whose order and random augmentations depend on seed, epoch and image alone.

What is drawn for an image does not depend on how many workers or processes share the work, nor on
what ran before: a run that is resumed at epoch 7 sees exactly what the uninterrupted run saw.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import islice

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler, get_worker_info

from solo.seeding import mix, seed_all


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """Leave the three random states of this process as they were."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class SeededItems:
    """Mixin for map-style datasets: an item's random draws follow from the pass and its index.

    Attributes:
        pass_seed: int64 tensor that `SeededLoader` sets before each pass and shares with its
            workers; None (any other loader) leaves the random generators alone.
    """

    pass_seed: torch.Tensor | None = None

    def __getitem__(self, index: int):
        if self.pass_seed is None:
            return super().__getitem__(index)
        seed = mix(int(self.pass_seed), int(index))
        if get_worker_info() is not None:  # a worker's random state belongs to its items
            seed_all(seed)
            return super().__getitem__(index)
        with _random_state_kept():
            seed_all(seed)
            return super().__getitem__(index)

    def __reduce__(self):  # a class made at run time cannot be pickled by name
        return _unpickle_seeded, (type(self).wrapped,), picklable_state(self)


def picklable_state(dataset: Dataset) -> dict:
    """What pickle would store of `dataset` (Python 3.10's objects have no `__getstate__`)."""
    return dataset.__getstate__() if hasattr(dataset, "__getstate__") else dataset.__dict__


@cache
def seeded(cls: type[Dataset]) -> type[Dataset]:
    """A subclass of the dataset class `cls` with `SeededItems`."""
    return type(cls.__name__, (SeededItems, cls), {"wrapped": cls, "__doc__": cls.__doc__})


def as_instance(dataset: Dataset, cls: type[Dataset]) -> Dataset:
    """The built `dataset` as one of `cls`, a subclass of its own class."""
    made = object.__new__(cls)
    vars(made).update(vars(dataset))
    return made


def with_seeds(dataset: Dataset) -> Dataset:
    """A built data set with `SeededItems`."""
    return as_instance(dataset, seeded(type(dataset)))


def _unpickle_seeded(cls: type[Dataset]) -> Dataset:
    return object.__new__(seeded(cls))


class EpochSampler(RandomSampler):
    """Random order that follows from the seed of this process and the epoch.

    Lightning calls `set_epoch`; without it each pass counts as the next epoch.
    """

    def __init__(self, data_source: Dataset):
        super().__init__(data_source)
        self.seed, self.epoch = torch.initial_seed(), 0

    def set_epoch(self, epoch: int) -> None:
        """Draw the order of this epoch next."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(mix(self.seed, self.epoch))
        self.epoch += 1
        yield from torch.randperm(len(self.data_source), generator=generator).tolist()


class SeededLoader(DataLoader):
    """DataLoader that tells a `SeededItems` dataset which pass begins.

    The pass is the epoch of the sampler (`EpochSampler`, or the DistributedSampler that Lightning
    puts in its place) and, if a sampler's epoch stands still, how often it has been repeated.
    """

    #: batches that the next pass loads and leaves out (a run that goes on within an epoch)
    first_batch: int = 0
    _run_seed: int | None = None
    _last_pass = (-1, 0)

    def __iter__(self) -> Iterator:
        # A generator, so that nothing is fetched before the first batch is asked for: Lightning
        # makes the iterator before it announces the epoch.
        self._announce_pass()
        first, self.first_batch = self.first_batch, 0
        yield from islice(super().__iter__(), first, None)

    def _announce_pass(self) -> None:
        if not isinstance(self.dataset, SeededItems):
            return
        if self.dataset.pass_seed is None:
            self.dataset.pass_seed = torch.zeros((), dtype=torch.int64)
        if self.num_workers and not self.dataset.pass_seed.is_shared():
            self.dataset.pass_seed.share_memory_()
        self.dataset.pass_seed.fill_(self.next_pass_seed())

    def next_pass_seed(self) -> int:
        """Count a pass and give its seed: the same on all ranks, and whatever ran before."""
        if self._run_seed is None:
            seed = getattr(self.sampler, "seed", None)
            self._run_seed = torch.initial_seed() if seed is None else seed
        epoch, last = getattr(self.sampler, "epoch", 0), self._last_pass
        self._last_pass = (epoch, last[1] + 1 if epoch == last[0] else 0)
        return mix(self._run_seed, *self._last_pass)


def seed_worker(worker_id: int) -> None:
    """Seed a worker process by the run's seed, the worker and the rank.

    For datasets without `SeededItems`; torch alone would give all ranks the same draws.
    """
    from lightning.pytorch.utilities import rank_zero_only

    seed_all(mix(torch.initial_seed(), getattr(rank_zero_only, "rank", 0) or 0))


def make_loader(
    dataset: Dataset, batch_size: int, num_workers: int, shuffle: bool, drop_last: bool
) -> DataLoader:
    """A loader with pinned memory and, when it shuffles, workers that stay between epochs."""
    order = getattr(dataset, "sampler_class", EpochSampler)
    warnings.filterwarnings("ignore", message=".*'pin_memory' argument is set as true.*")
    return SeededLoader(
        dataset,
        batch_size=batch_size,
        sampler=order(dataset) if shuffle and len(dataset) else None,
        num_workers=num_workers,
        pin_memory=True,
        drop_last=drop_last,
        worker_init_fn=seed_worker,
        persistent_workers=num_workers > 0,
    )
