# SPDX-License-Identifier: MIT
"""Checks `method_kwargs` against what a method declares."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from omegaconf import DictConfig

from solo.errors import ConfigError
from solo.utils.misc import omegaconf_select, set_default
from solo.values import accepts, check_number, unknown_key


def check_kwargs(cfg: DictConfig, kwargs: Mapping[str, Any], ignored: Iterable[str]) -> None:
    """Check `method_kwargs` against a method's `KWARGS` and fill in its defaults, in place."""
    for name in cfg.method_kwargs:
        if name in kwargs:
            continue
        strict = omegaconf_select(cfg, "strict") is True
        if not strict and (name in ignored or name in _kwargs_of_all_methods()):
            warnings.warn(f"method_kwargs.{name} has no effect on {cfg.method}", stacklevel=5)
        else:
            given, what = map(str, cfg.method_kwargs), f" for {cfg.method}"
            unknown_key(f"method_kwargs.{name}", kwargs, given, what, strict)
    for name, default in kwargs.items():
        key = f"method_kwargs.{name}"
        required = isinstance(default, type)
        if not required:
            set_default(cfg, key, default)
        value = omegaconf_select(cfg, key)
        kind = default if required else type(default)
        if kind is not type(None) and not accepts(value, kind):
            wanted = "a list" if kind is list else f"of type {kind.__name__}"
            problem = "is missing" if value is None else f"is {value!r}"
            raise ConfigError(f"{key} {problem}: {cfg.method} needs a value {wanted}")
        if required and kind is int and value < 1:  # all of them are widths or counts
            raise ConfigError(f"{key} is {value}: {cfg.method} needs at least 1")
        if accepts(value, float):
            check_number(value, f"'{key}={value}'", _limits(name))


def _limits(name: str) -> dict[str, float]:
    """What the name of a key says about its number."""
    if "temperature" in name and "epochs" not in name:
        return {"above": 0}
    if name == "queue_size":
        return {"least": 0}  # SwAV without a queue
    return {"least": 1} if name.startswith("num_") or name.endswith(("_size", "_dim")) else {}


def _kwargs_of_all_methods() -> set[str]:
    from solo.methods import METHODS

    return {name for method in METHODS.values() for name in getattr(method, "KWARGS", None) or ()}
