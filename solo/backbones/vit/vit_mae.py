# SPDX-License-Identifier: MIT
"""The encoder of masked autoencoders (He et al., 2022): a ViT that sees some patches only.

Fixed positions; 12 heads in the small sizes too (16 from the large one on).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from solo.backbones.vit.sizes import LEARNT_POSITIONS, build, sincos_positions

__all__ = ["MaskedAutoencoderViT", "vit_base", "vit_huge", "vit_large", "vit_small", "vit_tiny"]


class MaskedAutoencoderViT(VisionTransformer):
    """timm's ViT with fixed 2-D sine-cosine positions and random masking of patches.

    Further arguments are those of timm's class; `drop_path_rate` acts (in solo-learn it did not).
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        global_pool: str = "token",
        fc_norm: bool | None = None,
        num_classes: int = 0,
        norm_layer: Callable[..., nn.Module] = nn.LayerNorm,
        **kwargs: Any,
    ):
        super().__init__(
            img_size=img_size,
            patch_size=patch_size,
            in_chans=in_chans,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            global_pool=global_pool,
            fc_norm=fc_norm,
            num_classes=num_classes,
            norm_layer=norm_layer,
            **kwargs,
        )
        self.initialize_weights()

    def initialize_weights(self) -> None:
        """Positions of `patch_embed.grid_size` (w fast), and the paper's initialisation."""
        height, width = self.patch_embed.grid_size
        grid_h, grid_w = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        table = sincos_positions(grid_w.flatten(), grid_h.flatten(), self.embed_dim)
        self.pos_embed = nn.Parameter(table, requires_grad=False)
        nn.init.normal_(self.cls_token, std=0.02)
        projection = self.patch_embed.proj.weight
        nn.init.xavier_uniform_(projection.data.view(projection.shape[0], -1))
        self.apply(self._init_weights)

    def _init_weights(self, m: nn.Module) -> None:
        if isinstance(m, nn.Linear):
            nn.init.xavier_uniform_(m.weight)
            if m.bias is not None:
                nn.init.zeros_(m.bias)

    def random_masking(self, x: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
        """Keep a random part of each sample's tokens, the same number in each.

        Args:
            x: (N, L, D) tokens.
            mask_ratio: part that is removed; int(L (1 - ratio)) tokens stay.

        Returns:
            kept tokens (N, K, D), mask (N, L) with 1 where removed, and (N, L) the indices that
            bring kept-then-removed back into the order of the image.
        """
        n, length, dim = x.shape
        n_keep = int(length * (1 - mask_ratio))
        ids_shuffle = torch.rand(n, length, device=x.device).argsort(dim=1)
        ids_restore = ids_shuffle.argsort(dim=1)
        kept = x.gather(1, ids_shuffle[:, :n_keep, None].expand(-1, -1, dim))
        mask = (ids_restore >= n_keep).float()
        return kept, mask, ids_restore

    def forward_encoder(self, x: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
        """Images (N, C, H, W) to normalised tokens (N, 1 + kept, D), mask and ids_restore.

        Without masking (ratio 0) the tokens keep their order, so evaluation draws nothing.
        """
        x = self.patch_embed(x) + self.pos_embed[:, 1:]
        if mask_ratio:
            x, mask, ids_restore = self.random_masking(x, mask_ratio)
        else:
            mask = torch.zeros(x.shape[:2], device=x.device)
            ids_restore = torch.arange(x.shape[1], device=x.device).expand(len(x), -1)
        cls_token = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        x = self.norm_pre(self.pos_drop(torch.cat([cls_token, x], dim=1)))
        return self.norm(self.blocks(x)), mask, ids_restore

    def forward(self, imgs: Tensor, mask_ratio: float = 0) -> Any:
        """Features (N, D); with masking also all tokens, mask and ids_restore."""
        tokens, mask, ids_restore = self.forward_encoder(imgs, mask_ratio)
        features = self.forward_head(tokens)
        return (features, tokens, mask, ids_restore) if mask_ratio else features


_REFUSED = LEARNT_POSITIONS | {"patch_drop_rate", "dynamic_img_size", "dynamic_img_pad"}


def _build(name: str, kwargs: dict[str, Any]) -> MaskedAutoencoderViT:
    options = {"norm_layer": partial(nn.LayerNorm, eps=1e-6), **kwargs}
    return build(MaskedAutoencoderViT, name, False, _REFUSED, options)


def vit_tiny(**kwargs: Any) -> MaskedAutoencoderViT:
    """Width 192, 12 blocks, 12 heads; options of timm's `VisionTransformer`."""
    return _build("vit_tiny", kwargs)


def vit_small(**kwargs: Any) -> MaskedAutoencoderViT:
    """Width 384, 12 blocks, 12 heads; options of timm's `VisionTransformer`."""
    return _build("vit_small", kwargs)


def vit_base(**kwargs: Any) -> MaskedAutoencoderViT:
    """Width 768, 12 blocks, 12 heads; options of timm's `VisionTransformer`."""
    return _build("vit_base", kwargs)


def vit_large(**kwargs: Any) -> MaskedAutoencoderViT:
    """Width 1024, 24 blocks, 16 heads; options of timm's `VisionTransformer`."""
    return _build("vit_large", kwargs)


def vit_huge(**kwargs: Any) -> MaskedAutoencoderViT:
    """Width 1280, 32 blocks, 16 heads, patches of 14; options of timm's `VisionTransformer`."""
    return _build("vit_huge", {"patch_size": 14, **kwargs})
