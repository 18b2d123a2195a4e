# SPDX-License-Identifier: MIT
"""Losses are computed in float32, whatever precision the networks run in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def in_float32(function: Callable[P, R]) -> Callable[P, R]:
    """Make a loss compute in float32 also inside of autocast and from half-precision tensors.

    The mean of squared distances of unit vectors loses its digits in bfloat16 (BYOL's by about
    2 %). Tensors of float32 and float64, and gradients, are as without this.

    >>> import torch
    >>> z = torch.ones(2, 2, dtype=torch.bfloat16)
    >>> in_float32(lambda z: z.mean())(z).dtype
    torch.float32
    """

    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        device = next((x.device.type for x in _tensors((*args, *kwargs.values()))), "cpu")
        with torch.autocast(device, enabled=False):
            wide = {key: _widened(value) for key, value in kwargs.items()}
            return function(*map(_widened, args), **wide)  # type: ignore[arg-type]

    return wrapper


def _tensors(values: Iterable[Any]) -> Iterable[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _widened(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() and value.itemsize < 4 else value
    if type(value) in (list, tuple):
        return type(value)(map(_widened, value))
    return value
