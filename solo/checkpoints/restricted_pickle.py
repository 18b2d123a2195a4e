# SPDX-License-Identifier: MIT
"""Unpickles tensors and plain containers; whatever else a file holds becomes an inert placeholder.

For checkpoints that `weights_only=True` refuses although their weights are fine: solo-learn's
SimSiam and NNSiam files carry a pickled `functools.partial` of a scheduler's method, files of old
Lightning versions their callbacks' classes. Nothing that such a file names is imported or called.
"""

from __future__ import annotations

import collections
import pickle
from types import ModuleType
from typing import Any, BinaryIO

import torch

from solo.compat import TENSOR_MAKERS

_DTYPES = {f"torch.{name}": v for name, v in vars(torch).items() if isinstance(v, torch.dtype)}
# torch.load resolves storage types itself and never asks for them
_KNOWN: dict[str, Any] = {
    "collections.OrderedDict": collections.OrderedDict,
    "collections.defaultdict": collections.defaultdict,
    "builtins.dict": dict,
    "builtins.list": list,
    "builtins.set": set,
    **TENSOR_MAKERS,
    "torch.Size": torch.Size,
    "torch.device": torch.device,
    **_DTYPES,
}


class Placeholder:
    """Stands for an object of a class that is not ours to make; keeps nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Placeholder:
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> Placeholder:
        return Placeholder()

    def append(self, value: Any) -> None:
        """Ignore an item that a pickled list would get."""

    def extend(self, values: Any) -> None:
        """Ignore the items that a pickled list would get."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        # Python 2 names, which protocol 2 writes
        module = "builtins" if module == "__builtin__" else module
        return _KNOWN.get(f"{module}.{name}", Placeholder)


def _load(file: BinaryIO, **kwargs: Any) -> Any:
    return _Unpickler(file, **kwargs).load()


#: to pass to `torch.load(..., weights_only=False, pickle_module=...)`
pickle_module = ModuleType("solo.checkpoints.restricted_pickle")
vars(pickle_module).update(Unpickler=_Unpickler, load=_load, UnpicklingError=pickle.UnpicklingError)


def without_placeholders(value: Any) -> Any:
    """`value` with the placeholders left out of its dictionaries and lists, at any depth."""

    def inert(item: Any) -> bool:
        return isinstance(item, Placeholder) or item is Placeholder

    if isinstance(value, dict):
        return {
            key: without_placeholders(item)
            for key, item in value.items()
            if not inert(item) and not inert(key)
        }
    if isinstance(value, list):
        return [without_placeholders(item) for item in value if not inert(item)]
    return value
