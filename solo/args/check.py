# SPDX-License-Identifier: MIT
"""Check a configuration against the schema: unknown keys, wrong types, missing values.

Independent of torch and Lightning, except that an unknown top-level key is looked up in the
signature of Lightning's Trainer before it is called a mistake.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from solo.args.schema import Linear, Pretrain, TrainerArguments
from solo.errors import ConfigError
from solo.values import accepts, check_value, hints, limits_of, typed, unknown_key


def select(cfg: DictConfig, key: str, default: Any = None) -> Any:
    """Value at the dotted `key`, `default` where there is none; the string "None" means None."""
    value = OmegaConf.select(cfg, key, default=default)
    return None if isinstance(value, str) and value == "None" else value


def fill(cfg: DictConfig, section: str, schema: type, keys: Iterable[str] = ()) -> None:
    """Set the defaults of `schema` below `cfg.<section>`, in place; idempotent.

    Args:
        cfg: the whole configuration.
        section: dotted name of the section, empty for the top level.
        schema: dataclass whose fields with plain defaults are set.
        keys: only these fields; all of them when empty.
    """
    for key, default in defaults_of(schema, section, *keys).items():
        OmegaConf.update(cfg, key, select(cfg, key, default), force_add=True)


def defaults_of(schema: type, section: str, *keys: str) -> dict[str, Any]:
    """The defaults of a schema by dotted key, without those of its sections.

    Args:
        schema: dataclass.
        section: dotted name of the section, empty for the top level.
        keys: only these fields; all of them when there are none.
    """
    found = {}
    for item in fields(schema):
        if (keys and item.name not in keys) or is_dataclass(hints(schema)[item.name]):
            continue
        key = f"{section}.{item.name}" if section else item.name
        if item.default is not MISSING:
            found[key] = item.default
        elif item.default_factory is not MISSING:
            found[key] = item.default_factory()
    return found


def check(cfg: DictConfig, schema: type, extra: Iterable[str] = ()) -> None:
    """Check every key of `cfg` against `schema`, sections included.

    Args:
        cfg: the whole configuration.
        schema: the dataclass of the program.
        extra: further top-level names that are valid and checked elsewhere.

    Raises:
        ConfigError: for the first unknown key or wrong type, with its dotted name.
    """
    known = {item.name for item in fields(schema)}
    extra = set(extra)
    strict = cfg.get("strict") is True
    for key in cfg:
        if key not in known and key not in extra and key not in trainer_keys():
            options = known | extra | trainer_keys()
            ours = str(key) in _keys_of_programs() and not strict  # no misspelling, but another's
            unknown_key(str(key), () if ours else options, map(str, cfg), strict=strict)
    _check_values(cfg, schema, "", strict)
    _check_values(cfg, TrainerArguments, "", strict)


def check_section(node: Any, schema: type, path: str, strict: bool = False) -> None:
    """Check one section: its keys should be fields of `schema`, its values are of their types.

    Raises:
        ConfigError: naming the dotted key, what was found and what is valid.
    """
    if not isinstance(node, DictConfig):
        raise ConfigError(f"'{path}' must be a section with keys, not {typed(node)}")
    known = [item.name for item in fields(schema)]
    for key in node:
        if key not in known:
            unknown_key(f"{path}.{key}", known, map(str, node), strict=strict)
    _check_values(node, schema, path, strict)


def require(cfg: DictConfig, schema: type, path: str = "") -> None:
    """Check that every key without default is there.

    Raises:
        ConfigError: naming the first missing key.
    """
    for item in fields(schema):
        key = f"{path}.{item.name}" if path else item.name
        hint = hints(schema)[item.name]
        if is_dataclass(hint):
            require(cfg, hint, key)
        elif item.default is MISSING and item.default_factory is MISSING:
            try:
                found = OmegaConf.select(cfg, key, throw_on_missing=True)
            except OmegaConfBaseException:
                found = None
            if found is None and not accepts(None, hint):
                raise ConfigError(f"the key '{key}' is missing: add it to the YAML or as ++{key}=…")


@cache
def _keys_of_programs() -> set[str]:
    return {item.name for program in (Pretrain, Linear) for item in fields(program)}


@cache
def trainer_keys() -> frozenset[str]:
    """Names of the arguments of Lightning's Trainer (imports torch on the first call)."""
    from lightning.pytorch import Trainer

    return frozenset(inspect.signature(Trainer.__init__).parameters) - {"self"}


def _check_values(node: DictConfig, schema: type, path: str, strict: bool) -> None:
    limits = {item.name: limits_of(item) for item in fields(schema)}
    for key, hint in hints(schema).items():
        if key not in node or OmegaConf.is_missing(node, key):
            continue
        name = f"{path}.{key}" if path else key
        try:
            value = node[key]
        except OmegaConfBaseException as error:
            raise ConfigError(f"'{name}' cannot be read: {str(error).splitlines()[0]}") from error
        if is_dataclass(hint):
            if value is not None:
                check_section(value, hint, name, strict)
        else:
            check_value(value, hint, name, limits[key])
