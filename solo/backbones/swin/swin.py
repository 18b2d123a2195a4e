# SPDX-License-Identifier: MIT
"""timm's Swin transformers (patch 4, window 7) without classifier."""

from __future__ import annotations

from typing import Any

from timm.models.swin_transformer import SwinTransformer

from solo.backbones.options import check_kwargs, keywords

__all__ = ["swin_base", "swin_large", "swin_small", "swin_tiny"]


def _build(name: str, dim: int, depth: int, window_size: int, kwargs: dict) -> SwinTransformer:
    check_kwargs(name, kwargs, keywords(SwinTransformer))
    heads = dim // 32
    options = {
        "patch_size": 4,
        "window_size": window_size,
        "num_classes": 0,
        "embed_dim": dim,
        "depths": (2, 2, depth, 2),
        "num_heads": tuple(heads * factor for factor in (1, 2, 4, 8)),
        **kwargs,
    }
    return SwinTransformer(**options)


def swin_tiny(window_size: int = 7, **kwargs: Any) -> SwinTransformer:
    """Swin-T, 27.5 M parameters; options of timm's `SwinTransformer`, such as `img_size`."""
    return _build("swin_tiny", 96, 6, window_size, kwargs)


def swin_small(window_size: int = 7, **kwargs: Any) -> SwinTransformer:
    """Swin-S, 48.8 M parameters; options of timm's `SwinTransformer`, such as `img_size`."""
    return _build("swin_small", 96, 18, window_size, kwargs)


def swin_base(window_size: int = 7, **kwargs: Any) -> SwinTransformer:
    """Swin-B, 86.7 M parameters; options of timm's `SwinTransformer`, such as `img_size`."""
    return _build("swin_base", 128, 18, window_size, kwargs)


def swin_large(window_size: int = 7, **kwargs: Any) -> SwinTransformer:
    """Swin-L, 195.0 M parameters; options of timm's `SwinTransformer`, such as `img_size`."""
    return _build("swin_large", 192, 18, window_size, kwargs)
