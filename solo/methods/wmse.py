# SPDX-License-Identifier: MIT
"""W-MSE (Ermolov et al. 2020): whitened views of an image coincide (equations 1 and 4)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from solo.errors import ConfigError
from solo.losses.wmse import wmse_loss_func
from solo.methods.base import BaseMethod
from solo.methods.heads import Head, mlp
from solo.utils.whitening import Whitening2d


class WMSE(BaseMethod):
    """Any number of large crops; each is whitened in random parts of the batch.

    Raises:
        ConfigError: if the parts are larger than the batch or do not divide it.
    """

    KWARGS = {
        "proj_hidden_dim": int,
        "proj_output_dim": int,
        "whitening_iters": 1,
        "whitening_size": 256,
        "whitening_eps": 0.0,
    }
    HEADS = {"projector": Head("z")}
    LARGE_CROPS = None

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        kwargs = cfg.method_kwargs
        self.whitening_iters: int = kwargs.whitening_iters
        self.whitening_size: int = kwargs.whitening_size
        self.projector = mlp(self.features_dim, kwargs.proj_hidden_dim, kwargs.proj_output_dim)
        self.whitening = Whitening2d(kwargs.proj_output_dim, eps=kwargs.whitening_eps)

    @classmethod
    def add_and_assert_specific_cfg(cls, cfg: DictConfig) -> DictConfig:
        """Also checks that a part fits into the batch."""
        cfg = super().add_and_assert_specific_cfg(cfg)
        size, batch = cfg.method_kwargs.whitening_size, cfg.optimizer.batch_size
        if size > batch:
            raise ConfigError(
                f"method_kwargs.whitening_size={size} must not exceed optimizer.batch_size={batch}"
            )
        return cfg

    def _require_small_crops(self, method: str) -> None:
        """Only warn: solo-learn's published recipe for ImageNet-100 has some."""
        warnings.warn(
            f"{method}'s loss has no use for the {self.num_small_crops} small crops that "
            "'augmentations' makes: only batch norm sees them. Leave them out to save their time",
            stacklevel=4,
        )

    def _whiten(self, z: Tensor) -> Tensor:
        """Whiten every view of `z` (views, N, D) in the same random parts of the batch."""
        size = self.whitening_size
        if z.shape[1] % size:
            raise ConfigError(
                f"method_kwargs.whitening_size={size} must divide the batch of {z.shape[1]} "
                "per device (optimizer.batch_size)"
            )
        order = torch.randperm(z.shape[1]).to(z.device)
        parts = [torch.stack([self.whitening(v[i]) for v in z]) for i in order.split(size)]
        return torch.cat(parts, dim=1)

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """Mean distance over all pairs of views and all random partitions."""
        out = super().training_step(batch, batch_idx)
        losses = []
        for _ in range(self.whitening_iters):
            whitened = self._whiten(torch.stack(out["z"]))
            losses += [wmse_loss_func(z1, z2) for z1, z2 in combinations(whitened, 2)]
        wmse_loss = torch.stack(losses).mean()
        self._log_train(train_wmse_loss=wmse_loss)
        return wmse_loss + out["loss"]
