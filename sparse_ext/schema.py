# SPDX-License-Identifier: MIT
"""From a section of a run's configuration (`gating: NAME`) to the dataclass of that method.

Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from solo.errors import ConfigError, did_you_mean
from sparse_ext.typed import fill


def build(section: Any, path: str, methods: Mapping[str, type]) -> Any:
    """The checked configuration of one method.

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


def plain(section: Any) -> Any:
    """A section as plain data, interpolations resolved; anything else as it is."""
    from omegaconf import OmegaConf

    return (
        OmegaConf.to_container(section, resolve=True) if OmegaConf.is_config(section) else section
    )
