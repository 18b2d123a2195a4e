# SPDX-License-Identifier: MIT
"""What `--help` says of keys: name, type, default and a sentence, extensions included."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, get_type_hints

from solo import extensions
from solo.args.key_help import SENTENCES

WIDTH = 100


def describe_keys(schema: type) -> str:
    """All keys of a program: dotted name, type, default (or `required`), and one sentence."""
    lines = [
        "Keys, as they are typed (any argument of Lightning's Trainer is one, too). Keys that the",
        "YAML does not set take ++ in front: ++seed=3.",
        "",
        *_keys(schema),
    ]
    for extension in extensions.registered():
        for section, methods in extension.schemas().items():
            lines += ["", *_section(section, methods)]
    return "\n".join(lines)


def _keys(schema: type, path: str = "") -> Iterator[str]:
    hints = get_type_hints(schema)
    for item in fields(schema):
        name, hint = f"{path}{item.name}", hints[item.name]
        if is_dataclass(hint):
            yield from _keys(hint, f"{name}.")
        else:
            yield _line(name, hint, item, SENTENCES.get(name, ""))


def _section(section: str, methods: Mapping[str, type]) -> Iterator[str]:
    """The keys that all methods of an extension share, then those of each method."""
    kinds = list(methods.values())
    bases = [
        c for c in kinds[0].__mro__ if all(issubclass(k, c) and is_dataclass(c) for k in kinds)
    ]
    yield f"+{section}=NAME, with NAME one of {', '.join(methods)}. All of them have:"
    shared = {item.name for item in fields(bases[0])}
    yield from _own(bases[0], section, shared)
    for name, kind in methods.items():
        own = {item.name for item in fields(kind)} - shared
        changed = {
            item.name
            for item in fields(kind)
            if item.name in shared - {"name"} and _default(item) != _default_of(bases[0], item.name)
        }
        if own | changed:
            yield f"+{section}={name} also has, or has another default of:"
            yield from _own(kind, section, own | changed)


def _own(kind: type, path: str, names: set[str]) -> Iterator[str]:
    told, hints = _told(kind), get_type_hints(kind)
    for item in fields(kind):
        if item.name not in names or item.name == "name":
            continue
        if is_dataclass(hints[item.name]):
            part = hints[item.name]
            yield from _own(part, f"{path}.{item.name}", {each.name for each in fields(part)})
        else:
            sentence = told.get(item.name, "")
            yield _line(f"{path}.{item.name}", hints[item.name], item, sentence)


def _told(kind: type) -> dict[str, str]:
    """The sentences under `Attributes:` in the docstrings of a class and of those it is made of."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        _, _, text = (each.__doc__ or "").partition("Attributes:\n")
        for name, sentence in re.findall(r"^        (\w+): (.*(?:\n {12}.*)*)", text, re.MULTILINE):
            found[name] = " ".join(sentence.split())
    return found


def _default(item: Field) -> Any:
    if item.default is not MISSING:
        return item.default
    return item.default_factory() if item.default_factory is not MISSING else "required"


def _default_of(kind: type, name: str) -> Any:
    return next(_default(item) for item in fields(kind) if item.name == name)


def _line(name: str, hint: Any, item: Field, sentence: str) -> str:
    kind = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
    default = _default(item)
    shown = default if default == "required" else repr(default)
    lines = textwrap.wrap(sentence, WIDTH - 6, break_long_words=False)
    return "\n".join([f"  {name:<41} {kind:<33} {shown}", *(f"      {line}" for line in lines)])
