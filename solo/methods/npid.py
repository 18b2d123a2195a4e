# SPDX-License-Identifier: MIT
"""NPID (Wu et al. 2018): every image is a class; a memory bank holds the classes' weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from solo.errors import ConfigError
from solo.losses.npid import npid_loss_func, npid_softmax_loss_func, update_bank
from solo.methods.base import BaseMethod
from solo.methods.heads import Head
from solo.methods.queues import LateBuffersMixin
from solo.utils.misc import omegaconf_select
from solo.utils.ranks import concat_all_gather_no_grad


class NPID(LateBuffersMixin, BaseMethod):
    """Any number of large crops. Buffers: `bank` (images, D) of unit rows and the constant `Z`.

    Raises:
        ConfigError: for data without image indexes.
    """

    KWARGS = {
        "proj_output_dim": 128,
        "temperature": 0.07,
        "nce_k": 16384,
        "bank_momentum": 0.5,
    }
    HEADS = {"projector": Head("z")}
    LARGE_CROPS = None
    LATE_BUFFERS = ("bank",)
    LATE_PER_RANK = False

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        kwargs = cfg.method_kwargs
        self.temperature: float = kwargs.temperature
        self.nce_k: int = kwargs.nce_k
        self.bank_momentum: float = kwargs.bank_momentum
        self.projector = nn.Linear(self.features_dim, kwargs.proj_output_dim)
        self.register_buffer("Z", torch.zeros(()))  # 0: not estimated yet

    @classmethod
    def add_and_assert_specific_cfg(cls, cfg: DictConfig) -> DictConfig:
        """Also refuses what cannot work: DALI, which hides the indexes, and bad numbers."""
        cfg = super().add_and_assert_specific_cfg(cfg)
        kwargs = cfg.method_kwargs
        if omegaconf_select(cfg, "data.format") == "dali":
            raise ConfigError("npid must know every image's index: use data.format=image_folder")
        if kwargs.nce_k < 0 or kwargs.temperature <= 0 or not 0 <= kwargs.bank_momentum < 1:
            raise ConfigError(
                "method_kwargs of npid: nce_k is at least 0 (0 = softmax over all images), "
                f"temperature above 0, bank_momentum in [0, 1); got {dict(kwargs)}"
            )
        return cfg

    def on_train_start(self) -> None:
        """Make the bank, one row per training image, or take it from the checkpoint."""
        super().on_train_start()
        self.start_bank(len(self.trainer.train_dataloader.dataset))

    def start_bank(self, n: int) -> None:
        """`n` rows, uniform in +-1/sqrt(D/3) and normalised; the same on every rank."""
        dim = self.projector.out_features
        generator = torch.Generator().manual_seed(int(omegaconf_select(self.cfg, "seed", 0)))
        rows = (2 * torch.rand(n, dim, generator=generator) - 1) / (dim / 3) ** 0.5
        self.start_late_buffer("bank", F.normalize(rows, dim=1).to(self.device))

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """Instance discrimination plus the online classifier's loss; then the bank moves on."""
        out = super().training_step(batch, batch_idx)
        features = F.normalize(torch.cat(out["z"]).float(), dim=1)
        indexes = batch[0].repeat(len(out["z"]))
        npid_loss = self._loss(features, indexes)
        self._log_train(train_npid_loss=npid_loss)
        everyone = concat_all_gather_no_grad(features.detach()), concat_all_gather_no_grad(indexes)
        update_bank(self.bank, everyone[1], everyone[0], self.bank_momentum)
        return npid_loss + out["loss"]

    @torch.autocast("cuda", enabled=False)  # exp(1/0.07) is beyond half precision
    def _loss(self, features: Tensor, indexes: Tensor) -> Tensor:
        n, T = len(self.bank), self.temperature
        if not self.nce_k:  # a copy: the bank changes before the backward pass
            return npid_softmax_loss_func(features @ self.bank.clone().T / T, indexes)
        drawn = torch.randint(n, (len(indexes), self.nce_k), device=indexes.device)
        positive = (features * self.bank[indexes]).sum(dim=1) / T
        negatives = torch.bmm(self.bank[drawn], features[:, :, None]).squeeze(2) / T
        self._estimate_Z(torch.cat([positive[:, None], negatives], dim=1), n)
        return npid_loss_func(positive, negatives, self.Z, n)

    @torch.no_grad()
    def _estimate_Z(self, logits: Tensor, n: int) -> None:
        """`n` times the mean of exp over the first batch of all ranks; frozen from then on."""
        estimate = concat_all_gather_no_grad(logits.exp().mean()[None]).mean() * n
        self.Z.copy_(torch.where(self.Z > 0, self.Z, estimate))
