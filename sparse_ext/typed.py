# SPDX-License-Identifier: MIT
"""From what a user wrote (a mapping) to a dataclass, with every key and type checked."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from solo.errors import ConfigError, did_you_mean


def fill(schema: type, section: Mapping[str, Any], path: str) -> Any:
    """An instance of the dataclass `schema` with the values of `section`.

    Args:
        schema: a dataclass, which may have dataclasses as fields.
        section: what a user wrote; absent keys keep their default, and None means absent where
            the default is None.
        path: what messages call the section, e.g. `sparse`.

    Raises:
        ConfigError: for an unknown key or a value of another type than the field's.
    """
    hints = typing.get_type_hints(schema)
    defaults = {f.name: f.default for f in fields(schema)}
    names = list(defaults)
    for key in section:
        if key not in names:
            raise ConfigError(f"Unknown key {path}.{key}. {did_you_mean(str(key), names)}")
    given = {k: v for k, v in section.items() if v is not None or defaults[k] is not None}
    return schema(**{k: _convert(v, hints[k], f"{path}.{k}") for k, v in given.items()})


def _convert(value: Any, kind: Any, key: str) -> Any:
    if is_dataclass(kind):
        if isinstance(value, (str, bool)):  # `csi: off`, which YAML 1.1 reads as false
            value = {"mode": "off" if value is False else value}
        if isinstance(value, Mapping):
            return fill(typing.cast(type, kind), value, key)
    elif typing.get_origin(kind) is tuple:
        items = value if isinstance(value, (list, tuple)) else [value]
        if all(type(item) is typing.get_args(kind)[0] for item in items):
            return tuple(items)
    else:
        kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
        if kind is str and value is False:
            return "off"
        if float in kinds and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if type(value) in kinds:
            return value
    expected = kind.__name__ if isinstance(kind, type) else str(kind)
    raise ConfigError(f"{key}={value!r} has the wrong type: expected {expected}.")
