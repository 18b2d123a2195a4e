# SPDX-License-Identifier: MIT
"""timm's ConvNeXts without classifier.

Built from timm's class and not through its registry, where our names would overwrite timm's own.
"""

from __future__ import annotations

from typing import Any

from timm.models.convnext import ConvNeXt

from solo.backbones.options import check_kwargs, keywords

__all__ = ["convnext_base", "convnext_large", "convnext_small", "convnext_tiny"]


def _build(name: str, depth: int, dim: int, kwargs: dict[str, Any]) -> ConvNeXt:
    check_kwargs(name, kwargs, keywords(ConvNeXt))
    dims = tuple(dim * factor for factor in (1, 2, 4, 8))
    options = {"num_classes": 0, "depths": (3, 3, depth, 3), "dims": dims, **kwargs}
    return ConvNeXt(**options)


def convnext_tiny(**kwargs: Any) -> ConvNeXt:
    """ConvNeXt-T, 27.8 M parameters; options of timm's `ConvNeXt`."""
    return _build("convnext_tiny", 9, 96, kwargs)


def convnext_small(**kwargs: Any) -> ConvNeXt:
    """ConvNeXt-S, 49.5 M parameters; options of timm's `ConvNeXt`."""
    return _build("convnext_small", 27, 96, kwargs)


def convnext_base(**kwargs: Any) -> ConvNeXt:
    """ConvNeXt-B, 87.6 M parameters; options of timm's `ConvNeXt`."""
    return _build("convnext_base", 27, 128, kwargs)


def convnext_large(**kwargs: Any) -> ConvNeXt:
    """ConvNeXt-L, 196.2 M parameters; options of timm's `ConvNeXt`."""
    return _build("convnext_large", 27, 192, kwargs)
