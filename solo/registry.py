# SPDX-License-Identifier: MIT
"""Open tables of names: methods, encoders, data sets, scorers, formats, each one registry.

A package of somebody else's adds to them without a change here: it calls `register` when it is
imported, and a run imports it because its configuration says so (`imports: [my_package.methods]`)
or because it is installed with an entry point of the group `solo.extensions`.

Importing this module does not import torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from importlib import import_module
from typing import Any, Generic, TypeVar

from solo.errors import ConfigError, did_you_mean

T = TypeVar("T")


class UnknownNameError(ConfigError, KeyError):
    """Raised for a name under which nothing is registered; it names the nearest."""

    def __str__(self) -> str:
        """The message as it is; a KeyError would quote it."""
        return str(self.args[0])


class Registry(MutableMapping[str, T], Generic[T]):
    """A mapping from names to what they stand for, which other packages may add to.

    >>> colours = Registry("colour", {"red": 0xFF0000})
    >>> colours.register("blue", 0x0000FF)
    255
    >>> colours["blew"]
    Traceback (most recent call last):
    solo.registry.UnknownNameError: The colour 'blew' is unknown. Did you mean 'blue'?

    Args:
        what: what messages call an entry, such as `pruning method`.
        entries: the first ones, by name. A string `module:attribute` stands for that attribute of
            that module, which is imported when the entry is used.
    """

    def __init__(self, what: str, entries: Mapping[str, T | str] | None = None) -> None:
        self.what = what
        self._entries: dict[str, T | str] = dict(entries or {})
        self._resolved: dict[str, T] = {}  # what was imported; entries stay as they were registered

    def register(self, name: str, entry: T | str, *, replace: bool = False) -> T | str:
        """Add an entry and return it; the same entry again changes nothing.

        Args:
            name: what users write.
            entry: what it stands for, or where that is: `module:attribute`.
            replace: another entry of that name may be there, and goes.

        Raises:
            ConfigError: the name is no text, or it is taken.
        """
        if not isinstance(name, str) or not name:
            raise ConfigError(f"The name of a {self.what} is a text that is not empty: {name!r}.")
        taken = self._entries.get(name, entry)
        if taken is not entry and taken != entry and not replace:
            raise ConfigError(
                f"There is a {self.what} called '{name}' already: choose another name, or register "
                f"it with replace=True."
            )
        self._entries[name] = entry
        self._resolved.pop(name, None)
        return entry

    def find(self, name: Any, key: str) -> T:
        """The entry that a user asked for.

        Args:
            name: what the user wrote.
            key: where, such as `sparse.name`.

        Raises:
            UnknownNameError: names the nearest valid names.
        """
        if name not in self:
            raise UnknownNameError(f"{key}={name!r} is unknown. {did_you_mean(str(name), self)}")
        return self[name]

    def __getitem__(self, name: str) -> T:
        if name not in self:
            hint = did_you_mean(str(name), self)
            raise UnknownNameError(f"The {self.what} {name!r} is unknown. {hint}")
        if name not in self._resolved:
            self._resolved[name] = resolve(self._entries[name])
        return self._resolved[name]

    def __setitem__(self, name: str, entry: T | str) -> None:
        self.register(name, entry, replace=True)

    def __delitem__(self, name: str) -> None:
        del self._entries[name]
        self._resolved.pop(name, None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._entries

    def __repr__(self) -> str:
        return f"Registry({self.what}: {', '.join(self._entries)})"


def resolve(entry: Any) -> Any:
    """`entry`, or what it stands for if it is a path `module:attribute`."""
    if not isinstance(entry, str):
        return entry
    module, _, attribute = entry.partition(":")
    return getattr(import_module(module), attribute)


def import_plugins(modules: Any) -> None:
    """Import the modules that a configuration names under `imports`, so that they register.

    They are looked for where Python looks, and then in the current folder.

    Args:
        modules: a name such as `my_package.my_methods`, a list of names, or None.

    Raises:
        ConfigError: it is no list of names, or one of them cannot be imported.
    """
    named = modules is None or isinstance(modules, (str, Sequence))
    names = [modules] if isinstance(modules, str) or not named else list(modules or [])
    for name in names:
        if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
            raise ConfigError(
                f"imports={modules!r}: expected names of Python modules, such as "
                f"imports=[my_package.my_methods]."
            )
    here = os.getcwd()
    if names and here not in sys.path:
        sys.path.append(here)
    for name in names:
        try:
            import_module(name)
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(
                f"imports: '{name}' cannot be imported ({type(error).__name__}: {error}). Install "
                f"its package, or put its folder into PYTHONPATH."
            ) from error
