# SPDX-License-Identifier: MIT
"""Check a configuration against the schema: unknown keys, wrong types, missing values.

Independent of torch and Lightning, except that an unknown top-level key is looked up in the
signature of Lightning's Trainer before it is called a mistake.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from solo.args.schema import IGNORED_KEYS
from solo.errors import ConfigError, did_you_mean

_hints = cache(get_type_hints)

# The least value that makes sense, for keys of which a smaller one would only fail much later.
LEAST: dict[str, float] = {
    "max_epochs": 1,
    "num_nodes": 1,
    "accumulate_grad_batches": 1,
    "data.num_workers": 0,
    "optimizer.batch_size": 1,
    "optimizer.lr": 0,
    "optimizer.classifier_lr": 0,
    "optimizer.weight_decay": 0,
    "optimizer.layer_decay": 0,
    "optimizer.final_weight_decay": 0,
    "optimizer.patch_embed_lr": 0,
    "scheduler.warmup_epochs": 0,
    "checkpoint.frequency": 1,
    "auto_umap.frequency": 1,
    "auto_resume.max_hours": 0,
    "knn_eval.k": 1,
    "label_smoothing": 0,
    "mixup": 0,
    "cutmix": 0,
}


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
    for item in fields(schema):
        if (keys and item.name not in keys) or is_dataclass(_hints(schema)[item.name]):
            continue
        if item.default is MISSING and item.default_factory is MISSING:
            continue
        default = item.default if item.default is not MISSING else item.default_factory()
        key = f"{section}.{item.name}" if section else item.name
        OmegaConf.update(cfg, key, select(cfg, key, default), force_add=True)


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
    for key in cfg:
        if key in IGNORED_KEYS:
            warnings.warn(f"the key '{key}' has no effect and is ignored", stacklevel=2)
        elif key not in known and key not in extra and key not in trainer_keys():
            options = known | extra | trainer_keys()
            raise ConfigError(f"unknown key '{key}'. {did_you_mean(key, options)}")
    _check_values(cfg, schema, "")
    for key, least in LEAST.items():
        value = select(cfg, key)
        if value is not None and not value >= least:  # NaN, too
            raise ConfigError(f"'{key}={value}' is out of range: it must be at least {least}")


def check_section(node: Any, schema: type, path: str) -> None:
    """Check one section: its keys must be fields of `schema`, its values of their types.

    Raises:
        ConfigError: naming the dotted key, what was found and what is valid.
    """
    if not isinstance(node, DictConfig):
        raise ConfigError(f"'{path}' must be a section with keys, not {_typed(node)}")
    known = [item.name for item in fields(schema)]
    for key in node:
        if key not in known:
            raise ConfigError(f"unknown key '{path}.{key}'. {did_you_mean(str(key), known)}")
    _check_values(node, schema, path)


def require(cfg: DictConfig, schema: type, path: str = "") -> None:
    """Check that every key without default is there.

    Raises:
        ConfigError: naming the first missing key.
    """
    for item in fields(schema):
        key = f"{path}.{item.name}" if path else item.name
        hint = _hints(schema)[item.name]
        if is_dataclass(hint):
            require(cfg, hint, key)
        elif item.default is MISSING and item.default_factory is MISSING:
            try:
                found = OmegaConf.select(cfg, key, throw_on_missing=True)
            except OmegaConfBaseException:
                found = None
            if found is None and not _accepts(None, hint):
                raise ConfigError(f"the key '{key}' is missing: add it to the YAML or as ++{key}=…")


@cache
def trainer_keys() -> frozenset[str]:
    """Names of the arguments of Lightning's Trainer (imports torch on the first call)."""
    from lightning.pytorch import Trainer

    return frozenset(inspect.signature(Trainer.__init__).parameters) - {"self"}


def _check_values(node: DictConfig, schema: type, path: str) -> None:
    for key, hint in _hints(schema).items():
        if key not in node or OmegaConf.is_missing(node, key):
            continue
        name = f"{path}.{key}" if path else key
        try:
            value = node[key]
        except OmegaConfBaseException as error:
            raise ConfigError(f"'{name}' cannot be read: {str(error).splitlines()[0]}") from error
        if is_dataclass(hint):
            if value is not None:
                check_section(value, hint, name)
        elif not _accepts(value, hint):
            raise ConfigError(f"'{name}' must be {_wanted(hint)}, not {_typed(value)}")


def _accepts(value: Any, hint: Any) -> bool:
    if hint is Any:
        return True
    if get_origin(hint) in (Union, UnionType):
        return any(_accepts(value, option) for option in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if hint is NoneType:
        return value is None or value == "None"
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is list:
        return isinstance(value, (list, tuple, ListConfig))
    if hint is dict:
        return isinstance(value, (dict, DictConfig))
    return isinstance(value, hint)


def _wanted(hint: Any) -> str:
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_wanted(option) for option in get_args(hint))
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(repr(option) for option in get_args(hint))
    names = {
        int: "an integer",
        float: "a number",
        str: "a string",
        bool: "true or false",
        list: "a list",
        dict: "a section",
        NoneType: "null",
    }
    return names.get(hint, str(hint))


def _typed(value: Any) -> str:
    plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    return f"{plain!r} ({type(plain).__name__})"
