# SPDX-License-Identifier: MIT
"""ViTs as MoCo v3 trains them (Chen, Xie and He, 2021): fixed positions, their own initialisation.

12 heads in the small sizes too (16 in the large one), unlike the plain ViTs.
"""

from __future__ import annotations

from functools import partial
from math import sqrt
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from solo.backbones.vit.sizes import LEARNT_POSITIONS, build, sincos_positions

__all__ = ["VisionTransformerMoCo", "vit_base", "vit_large", "vit_small", "vit_tiny"]


class VisionTransformerMoCo(VisionTransformer):
    """timm's ViT with fixed 2-D sine-cosine positions; arguments of timm's class."""

    def __init__(self, **kwargs: Any):
        super().__init__(**{"norm_layer": partial(nn.LayerNorm, eps=1e-6), **kwargs})
        self.build_2d_sincos_position_embedding()
        nn.init.normal_(self.cls_token, std=1e-6)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                self._init_linear(name, module)
        projection = self.patch_embed.proj
        fan = projection.weight[0].numel() + self.embed_dim
        nn.init.uniform_(projection.weight, -sqrt(6 / fan), sqrt(6 / fan))
        nn.init.zeros_(projection.bias)

    @staticmethod
    def _init_linear(name: str, linear: nn.Linear) -> None:
        if name.endswith("qkv"):  # three matrices stacked: Xavier's bound of one of them
            bound = sqrt(6 / (linear.out_features // 3 + linear.in_features))
            nn.init.uniform_(linear.weight, -bound, bound)
        else:
            nn.init.xavier_uniform_(linear.weight)
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)

    def build_2d_sincos_position_embedding(self, temperature: float = 10000.0) -> None:
        """Set `pos_embed` (1, 1 + patches, embed_dim), not trained; w is the slow coordinate."""
        height, width = self.patch_embed.grid_size
        grid_w, grid_h = torch.meshgrid(torch.arange(width), torch.arange(height), indexing="ij")
        table = sincos_positions(grid_w.flatten(), grid_h.flatten(), self.embed_dim, temperature)
        self.pos_embed = nn.Parameter(table, requires_grad=False)


def _build(name: str, kwargs: dict[str, Any]) -> VisionTransformerMoCo:
    return build(VisionTransformerMoCo, name, False, LEARNT_POSITIONS, kwargs)


def vit_tiny(**kwargs: Any) -> VisionTransformerMoCo:
    """Width 192, 12 blocks, 12 heads; options of timm's `VisionTransformer`."""
    return _build("vit_tiny", kwargs)


def vit_small(**kwargs: Any) -> VisionTransformerMoCo:
    """Width 384, 12 blocks, 12 heads; options of timm's `VisionTransformer`."""
    return _build("vit_small", kwargs)


def vit_base(**kwargs: Any) -> VisionTransformerMoCo:
    """Width 768, 12 blocks, 12 heads; options of timm's `VisionTransformer`."""
    return _build("vit_base", kwargs)


def vit_large(**kwargs: Any) -> VisionTransformerMoCo:
    """Width 1024, 24 blocks, 16 heads; options of timm's `VisionTransformer`."""
    return _build("vit_large", kwargs)
