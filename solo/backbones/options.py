# SPDX-License-Identifier: MIT
"""Builders by name that import their family only when called, and checks of what they are given."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from solo.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from torch import nn


def lazy_builder(package: str, module: str, name: str) -> Callable[..., nn.Module]:
    """A builder `name(method, *args, **kwargs)` of an encoder family.

    Args:
        package: package whose attribute the builder is (so that it can be pickled by name).
        module: module inside `package` with a function `name(*args, **kwargs)`.
        name: name of the encoder.

    Returns:
        A function that imports `module` when it is called and ignores `method`.
    """

    def build(method: str | None = None, *args: Any, **kwargs: Any) -> nn.Module:
        return getattr(import_module(f"{package}.{module}"), name)(*args, **kwargs)

    build.__name__ = build.__qualname__ = name
    build.__module__ = package
    build.__doc__ = f"Build `{name}`; `method` is accepted for every encoder and ignored here."
    return build


def lazy_modules(package: str) -> Callable[[str], ModuleType]:
    """A `__getattr__` for `package` that finds its modules as if they had been imported."""

    def find(name: str) -> ModuleType:
        try:
            return import_module(f"{package}.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"{package}.{name}":
                raise
        raise AttributeError(f"module '{package}' has no attribute '{name}'")

    return find


def keywords(*callables: Callable) -> set[str]:
    """Names of the parameters that `callables` can take by keyword, without `self`."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        parameter.name
        for function in callables
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind in kinds
    }


def check_kwargs(builder: str, kwargs: Iterable[str], valid: set[str]) -> None:
    """Refuse options that `builder` does not have.

    Raises:
        ConfigError: names the key as typed and the nearest valid one.
    """
    for key in kwargs:
        if key not in valid:
            raise ConfigError(
                f"backbone.kwargs.{key}: '{builder}' has no such option. {did_you_mean(key, valid)}"
            )
