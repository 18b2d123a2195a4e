# SPDX-License-Identifier: MIT
"""MAE (He et al. 2021): reconstruct the hidden patches of an image from the visible ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from omegaconf import DictConfig
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from solo.errors import ConfigError
from solo.losses.mae import mae_loss_func
from solo.methods.base import BaseMethod
from solo.methods.heads import Head
from solo.utils.misc import generate_2d_sincos_pos_embed


class MAEDecoder(nn.Module):
    """Light transformer from the visible tokens to the pixels of all patches (section 3).

    Args:
        in_dim: dimension of the encoder's tokens.
        embed_dim: its own dimension.
        depth: number of blocks.
        num_heads: attention heads.
        num_patches: L, patches per image (a square number).
        patch_size: side of a patch in pixels.
        mlp_ratio: hidden dimension of the blocks' MLP over `embed_dim`.
        in_chans: channels of the images.
    """

    def __init__(
        self,
        in_dim: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        num_patches: int,
        patch_size: int,
        mlp_ratio: float = 4.0,
        in_chans: int = 3,
    ):
        super().__init__()
        self.num_patches = num_patches
        self.decoder_embed = nn.Linear(in_dim, embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.decoder_pos_embed = nn.Parameter(
            torch.zeros(1, num_patches + 1, embed_dim), requires_grad=False
        )
        self.decoder_blocks = nn.Sequential(
            *(Block(embed_dim, num_heads, mlp_ratio, qkv_bias=True) for _ in range(depth))
        )
        self.decoder_norm = nn.LayerNorm(embed_dim)
        self.decoder_pred = nn.Linear(embed_dim, patch_size**2 * in_chans)
        self.initialize_weights()

    def initialize_weights(self) -> None:
        """Fixed sine-cosine positions; Xavier for linear layers, zero biases."""
        side = int(self.num_patches**0.5)
        table = generate_2d_sincos_pos_embed(self.mask_token.shape[-1], side, cls_token=True)
        self.decoder_pos_embed.data.copy_(torch.from_numpy(table).float().unsqueeze(0))
        nn.init.normal_(self.mask_token, std=0.02)
        self.apply(self._init_weights)

    def _init_weights(self, m: nn.Module) -> None:
        if isinstance(m, nn.Linear):
            nn.init.xavier_uniform_(m.weight)
            nn.init.zeros_(m.bias)

    def forward(self, x: Tensor, ids_restore: Tensor) -> Tensor:
        """Predict the pixels of every patch from the encoded visible ones.

        Args:
            x: class token and visible tokens, (N, 1 + visible, in_dim).
            ids_restore: position of each patch among visible, then hidden ones, (N, L).

        Returns:
            (N, L, patch_size^2 * 3).
        """
        x = self.decoder_embed(x)
        n, length = ids_restore.shape
        hidden = self.mask_token.expand(n, length + 1 - x.shape[1], -1).to(x.dtype)
        patches = torch.cat([x[:, 1:], hidden], dim=1)
        order = ids_restore.unsqueeze(-1).expand(-1, -1, x.shape[2])
        x = torch.cat([x[:, :1], patches.gather(1, order)], dim=1) + self.decoder_pos_embed
        return self.decoder_pred(self.decoder_norm(self.decoder_blocks(x)))[:, 1:]


class MAE(BaseMethod):
    """Any number of large crops, each reconstructed by itself.

    Raises:
        ConfigError: for an encoder that is not a ViT, or a mask ratio that hides nothing.
    """

    KWARGS = {
        "decoder_embed_dim": int,
        "decoder_depth": int,
        "decoder_num_heads": int,
        "mask_ratio": 0.75,
        "norm_pix_loss": False,
    }
    HEADS = {"decoder": Head()}
    LARGE_CROPS = None

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        kwargs = cfg.method_kwargs
        self.mask_ratio: float = kwargs.mask_ratio
        self.norm_pix_loss: bool = kwargs.norm_pix_loss
        self._vit_embed_dim: int = self.backbone.pos_embed.size(-1)
        self._vit_patch_size: int = self.backbone_args.get("patch_size", 16)
        self._vit_num_patches: int = self.backbone.patch_embed.num_patches
        self.decoder = MAEDecoder(
            in_dim=self.features_dim,
            embed_dim=kwargs.decoder_embed_dim,
            depth=kwargs.decoder_depth,
            num_heads=kwargs.decoder_num_heads,
            num_patches=self._vit_num_patches,
            patch_size=self._vit_patch_size,
            in_chans=self.backbone_args.get("in_chans", 3),
        )

    @classmethod
    def add_and_assert_specific_cfg(cls, cfg: DictConfig) -> DictConfig:
        """Also checks the encoder and the mask ratio."""
        cfg = super().add_and_assert_specific_cfg(cfg)
        if "vit" not in cfg.backbone.name:
            raise ConfigError(
                f"mae needs a vision transformer that can leave out patches, got backbone.name="
                f"'{cfg.backbone.name}': use vit_tiny, vit_small, vit_base or vit_large"
            )
        if not 0 < cfg.method_kwargs.mask_ratio < 1:
            raise ConfigError(
                f"method_kwargs.mask_ratio={cfg.method_kwargs.mask_ratio} must be between 0 and 1"
            )
        return cfg

    def forward(self, X: Tensor) -> dict[str, Tensor]:
        """In training also `mask` (N, L) and `pred` (N, L, patch_size^2 * 3)."""
        if not self.training:
            return super().forward(X)
        feats, tokens, mask, ids_restore = self.backbone(self._channels(X), self.mask_ratio)
        pred = self.decoder(tokens, ids_restore)
        logits = self.classifier(feats.detach())
        return {"mask": mask, "pred": pred, "logits": logits, "feats": feats}

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """Error on the hidden patches, averaged over the large crops."""
        out = super().training_step(batch, batch_idx)
        images = [batch[1]] if isinstance(batch[1], Tensor) else batch[1]
        views = zip(images, out["pred"], out["mask"], strict=False)
        losses = [
            mae_loss_func(x, pred, mask, self._vit_patch_size, norm_pix_loss=self.norm_pix_loss)
            for x, pred, mask in views
        ]
        reconstruction_loss = torch.stack(losses).mean()
        self._log_train(train_reconstruction_loss=reconstruction_loss)
        return reconstruction_loss + out["loss"]
