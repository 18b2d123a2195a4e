# SPDX-License-Identifier: MIT
"""What the value of a key may be: one rule for all sections, those of extensions included.

A schema is a dataclass. A field's type says what its value is; `number` adds limits to it; a field
that is a dataclass itself is a section.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import Field, field, fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from solo.errors import ConfigError, did_you_mean

#: types of the fields of a schema by name
hints = cache(get_type_hints)

#: of float32, in which most of what a configuration says ends up
LARGEST = 3.4028e38
_LIMITS = {
    "least": (lambda value, limit: value >= limit, "at least"),
    "most": (lambda value, limit: value <= limit, "at most"),
    "above": (lambda value, limit: value > limit, "above"),
    "below": (lambda value, limit: value < limit, "below"),
}


_TYPO = 2  # letters by which the lengths of a key and of its misspelling may differ


def unknown_key(
    key: str, options: Iterable[str], given: Iterable[str], what: str = "", strict: bool = False
) -> None:
    """Refuse a key that looks like a valid one; warn of any other, which has no effect.

    Files of other people carry keys that nothing reads, and a misspelt key must not pass for one
    of those. It is one where a valid name is alike and about as long, or alike and not given.

    Args:
        key: dotted, as the user wrote it.
        options: the valid names of its section.
        given: all names in that section.
        what: what messages add to the key, such as ` for sgd`.
        strict: refuse it in any case (`strict=True` of the configuration).

    Raises:
        ConfigError: with the nearest valid names.
    """
    name, given, options = key.rpartition(".")[2], set(given), list(options)
    alike = get_close_matches(name, options, n=2, cutoff=0.6)
    typo = any(abs(len(n) - len(name)) <= _TYPO or n not in given for n in alike)
    if typo or strict:
        raise ConfigError(f"unknown key '{key}'{what}. {did_you_mean(name, options)}")
    warnings.warn(f"unknown key '{key}'{what}: it has no effect", stacklevel=3)


def number(default: Any, **limits: float) -> Any:
    """A field of a schema whose number has limits; a required one has them as its `metadata`.

    Args:
        default: of the field.
        **limits: `least`, `most`, `above`, `below`; `infinite=True` allows infinity.
    """
    return field(default=default, metadata=limits)


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
    check_values(node, schema, f"{path}.", strict)


def check_values(node: DictConfig, schema: type, prefix: str = "", strict: bool = False) -> None:
    """Check the values of those keys of `node` that are fields of `schema`, sections included.

    Args:
        node: a section, or the whole configuration.
        schema: its dataclass.
        prefix: of its keys in messages, with the dot.
        strict: see `unknown_key`.

    Raises:
        ConfigError: see `check_section`.
    """
    for item in fields(schema):
        if item.name not in node or OmegaConf.is_missing(node, item.name):
            continue
        name, hint = f"{prefix}{item.name}", hints(schema)[item.name]
        try:
            value = node[item.name]
        except OmegaConfBaseException as error:
            raise ConfigError(f"'{name}' cannot be read: {str(error).splitlines()[0]}") from error
        if not is_dataclass(hint):
            check_value(value, hint, name, limits_of(item))
        elif value is not None:
            check_section(value, hint, name, strict)


def check_value(value: Any, hint: Any, name: str, limits: Mapping[str, Any] | None = None) -> None:
    """Check the type of `value`, that numbers are finite, and that they lie within `limits`.

    Args:
        value: what was read.
        hint: the type of its field.
        name: dotted name of the key, for messages.
        limits: the field's metadata, see `number`.

    Raises:
        ConfigError: names the key, the value, and what it may be.
    """
    if not accepts(value, hint):
        raise ConfigError(f"'{name}' must be {wanted(hint)}, not {typed(value)}")
    if isinstance(value, (int, float)) and not isinstance(value, bool) and hint is not Any:
        check_number(value, f"'{name}={value}'", limits or {})


def check_number(value: float, said: str, limits: Mapping[str, Any]) -> None:
    """Check that `value` is finite and within `limits`; messages begin with `said`."""
    largest = LARGEST if isinstance(value, float) else 2**63 - 1
    unlimited = value == math.inf and limits.get("infinite")
    if not (abs(value) <= largest or unlimited):  # NaN does not compare either
        raise ConfigError(f"{said} is out of range: it must be a finite number of usual size")
    known = [key for key in _LIMITS if key in limits]
    if any(not _LIMITS[key][0](value, limits[key]) for key in known):
        texts = [f"{_LIMITS[key][1]} {limits[key]:g}" for key in known]
        raise ConfigError(f"{said} is out of range: it must be {' and '.join(texts)}")


def limits_of(item: Field) -> Mapping[str, Any]:
    """The limits that `number` has put on a field."""
    return item.metadata


def accepts(value: Any, hint: Any) -> bool:
    """Whether `value` is of the type `hint`; an integer is a number, the word None is null."""
    if hint is Any:
        return True
    if get_origin(hint) in (Union, UnionType):
        return any(accepts(value, option) for option in get_args(hint))
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


def wanted(hint: Any) -> str:
    """A type hint in the words of a message to the user."""
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(wanted(option) for option in get_args(hint))
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


def typed(value: Any) -> str:
    """A value with the name of its type."""
    plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    return f"{plain!r} ({type(plain).__name__})"
