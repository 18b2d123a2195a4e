# SPDX-License-Identifier: MIT
"""From a section of a run's configuration (`gating: NAME`) to the dataclass of that method.

Importing this module does not import torch.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Any

from solo.errors import ConfigError, did_you_mean
from solo.values import accepts, check_number


def build(section: Any, path: str, methods: Mapping[str, type]) -> Any:
    """The checked configuration of one method, from what a user wrote.

    Args:
        section: a method's name, a mapping with `name` and any of that method's keys, or what
            this function has returned before.
        path: name of the section, for messages.
        methods: dataclass by method name.

    Raises:
        ConfigError: for an unknown method or key, a wrong type, or values that contradict.
    """
    if isinstance(section, tuple(methods.values())):
        return section
    if isinstance(section, str):
        section = {"name": section}
    if not isinstance(section, Mapping):
        raise ConfigError(
            f"{path}={section!r}: expected a method's name or a mapping with its keys. "
            f"{did_you_mean('', methods)}"
        )
    name = section.get("name")
    if not isinstance(name, str) or name not in methods:
        what = f"{path}.name is missing" if name is None else f"{path}.name={name!r} is unknown"
        raise ConfigError(f"{what}. {did_you_mean(str(name or ''), methods)}")
    return fill(methods[name], section, path)


def to_dict(config: Any) -> dict[str, Any]:
    """Plain data (lists for tuples) that `build` turns into the same configuration again."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()}


def store(group: str, methods: Mapping[str, type]) -> None:
    """Register every method as an entry of the Hydra group `group`; twice changes nothing."""
    from hydra.core.config_store import ConfigStore

    for name, schema in methods.items():
        # plain data: a frozen dataclass would become a read-only node that nobody can override
        ConfigStore.instance().store(group=group, name=name, node=to_dict(schema()))


def require_choice(key: str, value: str, choices: tuple, extra: tuple = ()) -> None:
    """Raise ConfigError unless `value` of the dotted `key` is one of `choices`."""
    if value not in choices:
        raise ConfigError(f"Unknown {key}={value!r}. {did_you_mean(value, choices + extra)}")


def check_settings(name: str, config: Any, base: type) -> None:
    """Raise ConfigError unless `config` can hold the settings of a method called `name`."""
    if not (isinstance(config, type) and issubclass(config, base)):
        raise ConfigError(f"The settings of '{name}' must be a subclass of {base.__name__}.")
    frozen = getattr(config, "__dataclass_params__").frozen  # noqa: B009
    if getattr(config, "name", None) != name or not frozen:
        raise ConfigError(
            f"{config.__name__}, the settings of '{name}', must be a @dataclass(frozen=True) with "
            f'the field `name: str = "{name}"`.'
        )


def plain(section: Any) -> Any:
    """A section as plain data, interpolations resolved; anything else as it is."""
    from omegaconf import OmegaConf

    return (
        OmegaConf.to_container(section, resolve=True) if OmegaConf.is_config(section) else section
    )


def fill(schema: type, section: Mapping[str, Any], path: str) -> Any:
    """An instance of the dataclass `schema` with the values of `section`.

    Args:
        schema: a dataclass, which may have dataclasses as fields.
        section: what a user wrote; absent keys keep their default, and None, or the word, means
            absent where the default is None.
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
    nothing = {k for k, v in section.items() if v in (None, "None") and defaults[k] is None}
    given = {k: v for k, v in section.items() if k not in nothing}
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
        if kind is str and value is False:
            return "off"
        if accepts(value, kind):
            kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
            value = float(value) if float in kinds and isinstance(value, int) else value
            if isinstance(value, float):
                check_number(value, f"{key}={value}", {})
            return value
    expected = kind.__name__ if isinstance(kind, type) else str(kind)
    raise ConfigError(f"{key}={value!r} has the wrong type: expected {expected}.")
