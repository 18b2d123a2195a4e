# SPDX-License-Identifier: MIT
"""Datasets, augmentations and loaders. Submodules load on first use.

`dali_dataloader` and `h5_dataset` are listed in `__all__` only where their libraries are installed.
"""

from importlib import import_module
from importlib.util import find_spec

__all__ = ["classification_dataloader", "pretrain_dataloader"]
if find_spec("h5py"):
    __all__ += ["h5_dataset"]
if find_spec("nvidia") and find_spec("nvidia.dali"):
    __all__ += ["dali_dataloader"]


def __getattr__(name):
    if name in __all__ or name in {"dali_dataloader", "h5_dataset", "temp_dali_fix", "digits"}:
        return import_module(f"solo.data.{name}")
    raise AttributeError(f"module 'solo.data' has no attribute '{name}'")
