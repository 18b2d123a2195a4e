# SPDX-License-Identifier: MIT
"""A tiny configuration and batches for the tests of the methods."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import DataLoader, Dataset

CLASSES = 7


def tiny_cfg(method: str, method_kwargs: dict | None = None, **changes: Any) -> DictConfig:
    """A plain configuration as solo-learn's own tests write it: no section of ours.

    `changes` are dotted keys, written with `__` for the dots.
    """
    cfg = OmegaConf.create(
        {
            "name": "tiny",
            "method": method,
            "backbone": {"name": "resnet18", "kwargs": {"width": 4}},
            "method_kwargs": method_kwargs or {},
            "data": {
                "dataset": "cifar10",
                "num_classes": CLASSES,
                "num_large_crops": 2,
                "num_small_crops": 0,
            },
            "optimizer": {
                "name": "sgd",
                "batch_size": 4,
                "lr": 0.1,
                "weight_decay": 1e-4,
                "classifier_lr": 0.2,
            },
            "scheduler": {"name": "none"},
            "max_epochs": 2,
            "momentum": {"base_tau": 0.9, "final_tau": 1.0, "classifier": False},
        }
    )
    for key, value in changes.items():
        OmegaConf.update(cfg, key.replace("__", "."), value, force_add=True)
    return cfg


def tiny_batch(n: int = 4, large: int = 2, small: int = 0, seed: int = 0, size: int = 8) -> list:
    """`[indexes, views, targets]` of random images; small crops are half as wide."""
    generator = torch.Generator().manual_seed(seed)
    views = [torch.randn(n, 3, size, size, generator=generator) for _ in range(large)]
    views += [torch.randn(n, 3, size // 2, size // 2, generator=generator) for _ in range(small)]
    targets = torch.randint(0, CLASSES, (n,), generator=generator)
    return [torch.arange(n), views, targets]


class _Items(Dataset):
    def __init__(self, items: list):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def tiny_loaders(steps: int = 4, n: int = 4, large: int = 2, small: int = 0):
    """Training and validation loaders of `steps` and 2 batches, in a fixed order."""
    indexes, views, targets = tiny_batch(n * steps, large, small)
    train = [(i, [v[i] for v in views], targets[i]) for i in indexes.tolist()]
    val = [(views[0][i], targets[i]) for i in range(2 * n)]
    return DataLoader(_Items(train), batch_size=n), DataLoader(_Items(val), batch_size=n)


def tiny_trainer(**kwargs: Any) -> pl.Trainer:
    """A quiet trainer on the CPU that writes nothing."""
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return pl.Trainer(**{**settings, **kwargs})
