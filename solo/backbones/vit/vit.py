# SPDX-License-Identifier: MIT
"""timm's plain ViTs without classifier."""

from __future__ import annotations

from typing import Any

from timm.models.vision_transformer import VisionTransformer

from solo.backbones.vit.sizes import build

__all__ = ["vit_base", "vit_large", "vit_small", "vit_tiny"]


def _build(name: str, patch_size: int, kwargs: dict[str, Any]) -> VisionTransformer:
    return build(VisionTransformer, name, True, set(), {"patch_size": patch_size, **kwargs})


def vit_tiny(patch_size: int = 16, **kwargs: Any) -> VisionTransformer:
    """ViT-Ti: width 192, 12 blocks, 3 heads; options of timm's `VisionTransformer`."""
    return _build("vit_tiny", patch_size, kwargs)


def vit_small(patch_size: int = 16, **kwargs: Any) -> VisionTransformer:
    """ViT-S: width 384, 12 blocks, 6 heads; options of timm's `VisionTransformer`."""
    return _build("vit_small", patch_size, kwargs)


def vit_base(patch_size: int = 16, **kwargs: Any) -> VisionTransformer:
    """ViT-B: width 768, 12 blocks, 12 heads; options of timm's `VisionTransformer`."""
    return _build("vit_base", patch_size, kwargs)


def vit_large(patch_size: int = 16, **kwargs: Any) -> VisionTransformer:
    """ViT-L: width 1024, 24 blocks, 16 heads; options of timm's `VisionTransformer`."""
    return _build("vit_large", patch_size, kwargs)
