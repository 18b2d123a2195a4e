# SPDX-License-Identifier: MIT
"""What the ViT variants share: sizes, checked options, fixed position embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from solo.backbones.options import check_kwargs, keywords
from solo.errors import ConfigError

_T = TypeVar("_T", bound=VisionTransformer)

# name: width, depth, heads of the plain variant, heads of the MoCo v3 and MAE variants
SIZES = {
    "vit_tiny": (192, 12, 3, 12),
    "vit_small": (384, 12, 6, 12),
    "vit_base": (768, 12, 12, 12),
    "vit_large": (1024, 24, 16, 16),
    "vit_huge": (1280, 32, 16, 16),
}
#: options of timm's class that contradict position embeddings fixed at construction
LEARNT_POSITIONS = {
    "class_token",
    "no_embed_class",
    "pos_embed",
    "reg_tokens",
    "weight_init",
    "fix_init",
}


def build(
    cls: Callable[..., _T], name: str, plain: bool, refused: set[str], kwargs: dict[str, Any]
) -> _T:
    """A ViT of class `cls` and size `name` without classifier.

    Raises:
        ConfigError: an option that timm's class does not have or that is in `refused`.
    """
    check_kwargs(name, kwargs, keywords(VisionTransformer) - refused)
    width, depth, heads, other_heads = SIZES[name]
    options = {
        "embed_dim": width,
        "depth": depth,
        "num_heads": heads if plain else other_heads,
        "num_classes": 0,
        **kwargs,
    }
    return cls(**options)


def sincos_positions(
    first: Tensor, second: Tensor, dim: int, temperature: float = 10000.0
) -> Tensor:
    """Sine-cosine embeddings of 2-D positions, behind a row of zeros for the class token.

    Args:
        first: (P,) coordinate that the first half of the features encodes.
        second: (P,) coordinate of the second half.
        dim: number of features; a quarter each for sin and cos of either coordinate.
        temperature: longest wavelength / 2 pi.

    Returns:
        (1, P + 1, dim).

    Raises:
        ConfigError: `dim` is no multiple of 4.
    """
    if dim % 4:
        raise ConfigError(f"embed_dim={dim}: sine-cosine positions need a multiple of 4")
    omega = temperature ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    angles = [torch.outer(axis.double(), omega) for axis in (first, second)]
    table = torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1)
    return torch.cat([torch.zeros(1, dim), table.float()])[None]
