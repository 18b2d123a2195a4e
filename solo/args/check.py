# SPDX-License-Identifier: MIT
"""A whole configuration against the schema: unknown keys, wrong types, missing values, defaults.

Independent of torch and Lightning, except that an unknown top-level key is looked up in the
signature of Lightning's Trainer before it is called a mistake.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from solo.args.schema import Linear, Pretrain, TrainerArguments
from solo.errors import ConfigError
from solo.values import accepts, check_values, hints, unknown_key


def select(cfg: DictConfig, key: str, default: Any = None) -> Any:
    """Value at the dotted `key`, `default` where there is none; the string "None" means None."""
    value = OmegaConf.select(cfg, key, default=default)
    return None if isinstance(value, str) and value == "None" else value


def fill(node: DictConfig, schema: type, *keys: str) -> None:
    """Set the defaults of `schema` in `node`, in place; idempotent.

    A null where the default is a mapping counts as absent, so that `kwargs:` may be left empty.

    Args:
        node: the whole configuration, or a section.
        schema: its dataclass.
        keys: dotted names of fields, where that of a section stands for all of its fields; all
            fields when there are none. Required ones are left as they are.
    """
    known = {item.name: item for item in fields(schema)}
    with open_dict(node):
        for key in keys or known:
            name, _, rest = key.partition(".")
            hint, item = hints(schema)[name], known[name]
            if is_dataclass(hint):
                if node.get(name) is None:
                    node[name] = {}
                fill(node[name], hint, *filter(None, [rest]))
                continue
            default = item.default if item.default_factory is MISSING else item.default_factory()
            if default is not MISSING:
                value = select(node, name, default)
                empty = value is None and isinstance(default, Mapping)
                node[name] = default if empty else value


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
    check_values(cfg, schema, strict=strict)
    check_values(cfg, TrainerArguments, strict=strict)


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
