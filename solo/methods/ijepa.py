# SPDX-License-Identifier: MIT
"""I-JEPA (Assran et al. 2023, arXiv 2301.08243): predict the features of blocks from a context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from solo.backbones.vit.sizes import sincos_positions
from solo.errors import ConfigError
from solo.methods.base import BaseMomentumMethod
from solo.methods.heads import Head
from solo.methods.patch_masks import Blocks, JepaLaw, jepa_masks
from solo.methods.patch_tokens import encode, grid_of, require_vit
from solo.seeding import mix
from solo.utils.misc import omegaconf_select
from solo.utils.ranks import get_rank, get_world_size
from solo.utils.views import current_view


class JepaPredictor(nn.Module):
    """Narrow transformer from the context's tokens to those of the target blocks.

    Args:
        in_dim: dimension D of the encoder's tokens.
        embed_dim: its own dimension.
        depth: number of blocks.
        num_heads: attention heads.
        grid: rows and columns of patches.
    """

    positions: Tensor

    def __init__(
        self, in_dim: int, embed_dim: int, depth: int, num_heads: int, grid: tuple[int, int]
    ):
        super().__init__()
        rows, columns = (torch.arange(side) for side in grid)
        row, column = torch.meshgrid(rows, columns, indexing="ij")
        table = sincos_positions(column.flatten(), row.flatten(), embed_dim)[0, 1:]
        self.register_buffer("positions", table, persistent=False)
        self.mask_token = nn.Parameter(torch.zeros(embed_dim))
        self.embed = nn.Linear(in_dim, embed_dim)
        self.blocks = nn.Sequential(
            *(Block(embed_dim, num_heads, qkv_bias=True) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(embed_dim)
        self.out = nn.Linear(embed_dim, in_dim)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.apply(self._init_weights)

    def _init_weights(self, m: nn.Module) -> None:
        if isinstance(m, nn.Linear):
            nn.init.trunc_normal_(m.weight, std=0.02)
            nn.init.zeros_(m.bias)

    def forward(self, context: Tensor, blocks: Blocks) -> Tensor:
        """Predict every target block by itself.

        Args:
            context: (N, K, D) tokens of the context patches.
            blocks: which patches these are, and those of the M targets with T patches each.

        Returns:
            (N, M, T, D).
        """
        n, m, t = blocks.targets.shape
        seen = self.embed(context) + self.positions[blocks.context]
        asked = (self.mask_token + self.positions[blocks.targets]).to(seen.dtype)
        sequence = torch.cat([seen.repeat_interleave(m, dim=0), asked.flatten(0, 1)], dim=1)
        predicted = self.norm(self.blocks(sequence))[:, -t:]
        return self.out(predicted).view(n, m, t, -1)


class IJEPA(BaseMomentumMethod):
    """One view: the online encoder sees the context's patches only, the momentum encoder all.

    What is evaluated is the mean of the patch tokens, best of the momentum encoder
    (`eval_encoder=momentum`).

    Raises:
        ConfigError: the encoder has no patch tokens, or its features are not their mean.
    """

    KWARGS = {
        "pred_embed_dim": 384,
        "pred_depth": 6,
        "pred_num_heads": 12,
        "num_targets": 4,
        "target_scale": [0.15, 0.2],
        "target_aspect": [0.75, 1.5],
        "context_scale": [0.85, 1.0],
        "min_context": 4,
    }
    HEADS = {"predictor": Head()}
    LARGE_CROPS = None

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        kwargs = cfg.method_kwargs
        require_vit(self.backbone, cfg.method, self.backbone_name)
        if self.backbone.global_pool != "avg":
            raise ConfigError(
                "ijepa's features are the mean of the patch tokens: set "
                "backbone.kwargs={class_token: False, global_pool: avg, fc_norm: False}"
            )
        self.law = JepaLaw(
            kwargs.num_targets,
            tuple(kwargs.target_scale),
            tuple(kwargs.target_aspect),
            tuple(kwargs.context_scale),
            kwargs.min_context,
        )
        self.predictor = JepaPredictor(
            self.backbone.embed_dim,
            kwargs.pred_embed_dim,
            kwargs.pred_depth,
            kwargs.pred_num_heads,
            self.backbone.patch_embed.grid_size,
        )
        self._blocks: list[Blocks] | None = None  # of the training step under way

    @classmethod
    def add_and_assert_specific_cfg(cls, cfg: DictConfig) -> DictConfig:
        """Also checks the ranges that sizes of blocks are drawn from."""
        cfg = super().add_and_assert_specific_cfg(cfg)
        kwargs = cfg.method_kwargs
        for name, most in (("target_scale", 1), ("target_aspect", None), ("context_scale", 1)):
            values = list(kwargs[name])
            if len(values) != 2 or not 0 < values[0] <= values[1] <= (most or values[1]):
                raise ConfigError(
                    f"method_kwargs.{name}={values} must be a smallest and a largest value above 0"
                    + (f", at most {most}" if most else "")
                )
        for name in ("num_targets", "min_context"):
            if kwargs[name] < 1:
                raise ConfigError(f"method_kwargs.{name}={kwargs[name]} must be at least 1")
        return cfg

    def draw_blocks(self, images: Tensor, view: int, batch_idx: int) -> Blocks:
        """Context and targets of images (N, 3, H, W); see `jepa_masks`.

        They follow from the seed, the step, and each image's place in the batch of all ranks.
        """
        step = self.trainer.global_step if self._trainer is not None else 0
        seed = mix(int(omegaconf_select(self.cfg, "seed", 0)), step, batch_idx, view)
        n, rank = len(images), get_rank()
        blocks = jepa_masks(n * get_world_size(), grid_of(self.backbone, images), self.law, seed)
        return Blocks(*(part[rank * n : (rank + 1) * n].to(images.device) for part in blocks))

    def _blocks_now(self) -> Blocks | None:
        view = current_view()
        return None if self._blocks is None or view is None else self._blocks[view.index]

    def forward(self, X: Tensor) -> dict[str, Tensor]:
        """In a training step of the context's patches; adds `pred` (N, targets, patches, D)."""
        blocks = self._blocks_now()
        if blocks is None:
            return super().forward(X)
        feats, context = encode(self.backbone, self._channels(X), kept=blocks.context)
        logits = self.classifier(feats.detach())
        return {"logits": logits, "feats": feats, "pred": self.predictor(context, blocks)}

    @torch.no_grad()
    def momentum_forward(self, X: Tensor) -> dict[str, Tensor]:
        """In a training step adds `target`, the normalised tokens at the target blocks."""
        blocks = self._blocks_now()
        if blocks is None:
            return super().momentum_forward(X)
        feats, patches = encode(self.momentum_backbone, self._channels(X))
        patches = F.layer_norm(patches, patches.shape[-1:])
        index = blocks.targets.flatten(1)[..., None].expand(-1, -1, patches.shape[-1])
        return {"feats": feats, "target": patches.gather(1, index).view(*blocks.targets.shape, -1)}

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """Smooth L1 between predicted and momentum tokens, averaged over the views."""
        X = [batch[1]] if isinstance(batch[1], Tensor) else batch[1]
        large = X[: self.num_large_crops]
        self._blocks = [self.draw_blocks(x, view, batch_idx) for view, x in enumerate(large)]
        try:
            out = super().training_step(batch, batch_idx)
        finally:
            self._blocks = None
        pairs = zip(out["pred"], out["momentum_target"], strict=True)
        jepa_loss = torch.stack([F.smooth_l1_loss(pred, target) for pred, target in pairs]).mean()
        self._log_train(train_jepa_loss=jepa_loss)
        return jepa_loss + out["loss"]
