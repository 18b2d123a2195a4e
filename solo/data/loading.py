# SPDX-License-Identifier: MIT
"""DataLoaders whose workers are seeded and stay alive between epochs."""

from __future__ import annotations

import random
import warnings

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset


def seed_worker(worker_id: int) -> None:
    """Seed `random`, numpy and torch of one worker process.

    All three matter: the PIL blur draws from `random`, torchvision from torch. The seed follows
    from the main process's torch seed, the worker and the rank, so runs repeat and no two
    processes draw the same augmentations.
    """
    from lightning.pytorch.utilities import rank_zero_only

    rank = getattr(rank_zero_only, "rank", 0) or 0
    sequence = np.random.SeedSequence([torch.initial_seed(), rank])  # torch adds worker_id itself
    python, array, tensor = sequence.spawn(3)
    random.seed(int(python.generate_state(1, np.uint64)[0]))
    np.random.seed(array.generate_state(4))
    torch.manual_seed(int(tensor.generate_state(1, np.uint64)[0] >> 1))


def make_loader(
    dataset: Dataset, batch_size: int, num_workers: int, shuffle: bool, drop_last: bool
) -> DataLoader:
    """A DataLoader with pinned memory, seeded workers and workers kept between epochs."""
    warnings.filterwarnings("ignore", message=".*'pin_memory' argument is set as true.*")
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=shuffle,
        num_workers=num_workers,
        pin_memory=True,
        drop_last=drop_last,
        worker_init_fn=seed_worker,
        persistent_workers=num_workers > 0,
    )
