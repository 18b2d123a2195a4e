# SPDX-License-Identifier: MIT
"""Modules with another forward pass: subclasses made at run time, which pickle all the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

_made: dict[tuple[type, Callable], type] = {}


def subclass(kind: Any, forward: Callable) -> Any:
    """The subclass of a class of modules with that forward pass, one per class and process.

    Args:
        kind: class of modules.
        forward: `forward(module, ...)`, a function of a Python module, so that pickles can name it.
    """
    if (kind, forward) not in _made:

        def reduce(self: nn.Module, protocol: Any) -> tuple:
            """Pickles name what every process knows: the class and the function."""
            return empty, (kind, forward), self.__dict__

        about = {
            "forward": forward,
            "__module__": forward.__module__,
            "__doc__": forward.__doc__,
            "__reduce_ex__": reduce,
        }
        _made[kind, forward] = type(f"Slim{kind.__name__}", (kind,), about)
    return _made[kind, forward]


def empty(kind: Any, forward: Callable) -> nn.Module:
    """A module of that subclass without attributes, which a pickle then fills in."""
    return kind.__new__(subclass(kind, forward))
