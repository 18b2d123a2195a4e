# SPDX-License-Identifier: MIT
"""iBOT (Zhou et al. 2021, arXiv 2111.07832): DINO, and the same for hidden patches (eq. 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from solo.errors import ConfigError
from solo.losses.ibot import ibot_patch_loss_func
from solo.methods.dino import DINO
from solo.methods.heads import Head, apply_heads, momentum_pair
from solo.methods.patch_masks import block_masks, hidden_counts
from solo.methods.patch_tokens import MaskToken, encode, grid_of, require_vit
from solo.seeding import mix
from solo.utils.misc import omegaconf_select
from solo.utils.ranks import get_rank, get_world_size
from solo.utils.views import current_view


class Hidden(NamedTuple):
    """The hidden patches of one view of this rank's images.

    Attributes:
        mask: (N, L) bool, True where hidden.
        index: (M,) places of the hidden patches in the flattened mask.
        owner: (M,) the image that each hidden patch is of.
    """

    mask: Tensor
    index: Tensor
    owner: Tensor

    def of(self, patches: Tensor) -> Tensor:
        """The hidden ones of patches (N, L, D): (M, D)."""
        return patches.flatten(0, 1)[self.index]


class IBOT(DINO):
    """The student does not see some patches of half of the large crops; the teacher sees all.

    Raises:
        ConfigError: the encoder has no patch tokens, or shares are out of range.
    """

    KWARGS: Mapping[str, Any] = {
        **DINO.KWARGS,
        "proj_hidden_dim": 2048,
        "proj_output_dim": 256,
        "num_prototypes": 8192,
        "local_crops": True,
        "shared_head": True,
        "mask_probability": 0.5,
        "mask_ratio_min": 0.1,
        "mask_ratio_max": 0.5,
        "patch_loss_weight": 1.0,
    }
    HEADS: Mapping[str, Head] = {**DINO.HEADS, "mask_token": Head()}

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        kwargs = cfg.method_kwargs
        require_vit(self.backbone, cfg.method, self.backbone_name)
        self.mask_probability: float = kwargs.mask_probability
        self.mask_ratio = (kwargs.mask_ratio_min, kwargs.mask_ratio_max)
        self.patch_loss_weight: float = kwargs.patch_loss_weight
        self.shared_head: bool = kwargs.shared_head
        self.mask_token = MaskToken(self.backbone.embed_dim)
        if not self.shared_head:
            self.HEADS = {**self.HEADS, "patch_head": Head()}
            self.patch_head, self.momentum_patch_head = momentum_pair(self._build_head)
        self.patch_loss_func = self._build_loss(self.num_large_crops)
        self._hidden: list[Hidden] | None = None  # of the training step under way

    @classmethod
    def add_and_assert_specific_cfg(cls, cfg: DictConfig) -> DictConfig:
        """Also checks how many patches are hidden."""
        cfg = super().add_and_assert_specific_cfg(cfg)
        kwargs = cfg.method_kwargs
        shares = kwargs.mask_ratio_min, kwargs.mask_ratio_max
        if not 0 <= shares[0] <= shares[1] < 1 or not 0 <= kwargs.mask_probability <= 1:
            raise ConfigError(
                f"method_kwargs of {cfg.method}: 0 <= mask_ratio_min <= mask_ratio_max < 1 and "
                f"mask_probability from 0 to 1, got {shares[0]}, {shares[1]} and "
                f"{kwargs.mask_probability}"
            )
        return cfg

    def on_train_epoch_start(self) -> None:
        """As DINO's, for both losses."""
        super().on_train_epoch_start()
        self.patch_loss_func.epoch = self.current_epoch

    def hide(self, images: Tensor, view: int, batch_idx: int) -> Hidden:
        """Draw which patches of a view (N, 3, H, W) are hidden.

        They follow from the seed, the step, and each image's place in the batch of all ranks.
        """
        step = self.trainer.global_step if self._trainer is not None else 0
        seed = mix(int(omegaconf_select(self.cfg, "seed", 0)), step, batch_idx, view)
        grid, n = grid_of(self.backbone, images), len(images)
        total = n * get_world_size()
        patches = grid[0] * grid[1]
        counts = hidden_counts(total, patches, self.mask_probability, self.mask_ratio, seed)
        mask = block_masks(counts, grid, get_rank() * n, n, seed)
        index = mask.flatten().nonzero().flatten()
        return Hidden(*(x.to(images.device) for x in (mask, index, index // patches)))

    def _hidden_now(self) -> Hidden | None:
        view = current_view()
        return None if self._hidden is None or view is None else self._hidden[view.index]

    def forward(self, X: Tensor) -> dict[str, Tensor]:
        """In a training step with patches hidden; adds `patches` (M, num_prototypes) of those."""
        hidden = self._hidden_now()
        if hidden is None:
            return super().forward(X)
        feats, patches = encode(self.backbone, self._channels(X), hidden.mask, self.mask_token)
        head = self.head if self.shared_head else self.patch_head
        return {
            "logits": self.classifier(feats.detach()),
            "feats": feats,
            **apply_heads(feats, self.declared_heads, self.get_submodule),
            "patches": head(hidden.of(patches)),
        }

    @torch.no_grad()
    def momentum_forward(self, X: Tensor) -> dict[str, Tensor]:
        """In a training step adds the teacher's `patches` at the same places; it sees them all."""
        hidden = self._hidden_now()
        if hidden is None:
            return super().momentum_forward(X)
        feats, patches = encode(self.momentum_backbone, self._channels(X))
        head: nn.Module = self.momentum_head if self.shared_head else self.momentum_patch_head
        return {"feats": feats, "z": self.momentum_head(feats), "patches": head(hidden.of(patches))}

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """DINO's loss on the class tokens and the patches' loss on each large crop by itself."""
        X = batch[1][: self.num_large_crops]
        self._hidden = [self.hide(x, view, batch_idx) for view, x in enumerate(X)]
        try:
            return super().training_step(batch, batch_idx)
        finally:
            self._hidden = None

    def terms(self, out: Mapping[str, Any]) -> dict[str, Tensor]:
        """DINO's term and the patches'."""
        hidden, images = self._hidden or [], len(out["feats"][0])
        teacher = torch.cat(out["momentum_patches"])
        targets = self.patch_loss_func.targets(teacher).split([len(h.index) for h in hidden])
        losses = [
            ibot_patch_loss_func(
                (student / self.patch_loss_func.student_temp).log_softmax(dim=-1),
                target,
                h.owner,
                images,
            )
            for student, target, h in zip(out["patches"], targets, hidden, strict=True)
        ]
        self.patch_loss_func.update_center(teacher)
        patch_loss = self.patch_loss_weight * torch.stack(losses).mean()
        return {**super().terms(out), "train_patch_loss": patch_loss}
