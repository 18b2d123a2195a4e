# SPDX-License-Identifier: MIT
"""solo: self-supervised methods, backbones, data and evaluation, drop-in for solo-learn.

Submodules load on first use, so `import solo` costs nothing.
"""

from importlib import import_module

__version__ = "0.1.0"
__all__ = ["args", "backbones", "data", "losses", "methods", "utils"]


def __getattr__(name):
    if name in __all__:
        return import_module(f"solo.{name}")
    if name == "load_pretrained":
        from solo.checkpoints import load_pretrained

        return load_pretrained
    raise AttributeError(f"module 'solo' has no attribute '{name}'")


def __dir__():
    return [*globals(), *__all__, "load_pretrained"]
