# SPDX-License-Identifier: MIT
"""Vision transformers (Dosovitskiy et al., 2021): plain, as MoCo v3 trains them, and masked (MAE).

The one family that looks at `method`: "mocov3" and "mae" have encoders of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from solo.backbones.options import lazy_modules

if TYPE_CHECKING:
    from torch import nn

__all__ = ["vit_base", "vit_large", "vit_small", "vit_tiny"]

_MODULES = {"mocov3": "vit_mocov3", "mae": "vit_mae"}
_T = TypeVar("_T")


def get_constructor(method: str | None, options: Mapping[str, _T], default: _T) -> _T:
    """The entry of `options` for `method`, whatever its case, or `default`."""
    return options.get(str(method).lower(), default)


def _builder(name: str) -> Callable[..., nn.Module]:
    def build(method: str | None = None, *args: Any, **kwargs: Any) -> nn.Module:
        module = import_module(f"{__name__}.{get_constructor(method, _MODULES, 'vit')}")
        return getattr(module, name)(*args, **kwargs)

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"Build `{name}` in the variant that `method` trains."
    return build


vit_tiny = _builder("vit_tiny")
vit_small = _builder("vit_small")
vit_base = _builder("vit_base")
vit_large = _builder("vit_large")

__getattr__ = lazy_modules(__name__)
