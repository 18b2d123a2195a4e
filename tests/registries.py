# SPDX-License-Identifier: MIT
"""Registries as they were: what a test registers is gone afterwards."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from solo.registry import Registry


def registries() -> list[Registry]:
    """Every registry of a module that has been imported, once each."""
    modules = [m for name, m in sys.modules.items() if name.startswith(("solo.", "sparse_ext."))]
    found = [value for module in modules for value in vars(module).values()]
    return list({id(value): value for value in found if isinstance(value, Registry)}.values())


@contextmanager
def registries_restored() -> Iterator[None]:
    """Take out of every registry what was not in it before."""
    before = {id(registry): set(registry) for registry in registries()}
    try:
        yield
    finally:
        for registry in registries():
            for name in set(registry) - before.get(id(registry), set(registry)):
                del registry[name]
