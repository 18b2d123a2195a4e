# SPDX-License-Identifier: MIT
"""LeJEPA (Balestriero and LeCun 2025, arXiv 2511.08544): agreeing views, Gaussian embeddings.

No teacher, predictor, stop-gradient or queue: one encoder, one projector, one regulariser.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from solo.errors import ConfigError
from solo.losses.lejepa import draw_directions, lejepa_loss_func
from solo.methods.base import BaseMethod
from solo.methods.heads import Head, mlp
from solo.seeding import mix
from solo.utils.misc import omegaconf_select


class LeJEPA(BaseMethod):
    """Large crops are the paper's global views, of any number; small crops the local ones.

    Raises:
        ConfigError: for a weight that is no share, or too few directions.
    """

    KWARGS = {
        "proj_hidden_dim": 2048,
        "proj_output_dim": 64,
        "lamb": 0.05,
        "num_directions": 1024,
        "pool_views": False,
    }
    HEADS = {"projector": Head("z")}
    HEADS_ON_SMALL_CROPS = True
    LARGE_CROPS = None

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        kwargs = cfg.method_kwargs
        hidden, self.proj_output_dim = kwargs.proj_hidden_dim, kwargs.proj_output_dim
        self.lamb: float = kwargs.lamb
        self.num_directions: int = kwargs.num_directions
        self.pool_views: bool = kwargs.pool_views
        self.projector = mlp(self.features_dim, hidden, hidden, self.proj_output_dim)

    @classmethod
    def add_and_assert_specific_cfg(cls, cfg: DictConfig) -> DictConfig:
        """Also checks the weight and the number of directions."""
        cfg = super().add_and_assert_specific_cfg(cfg)
        kwargs = cfg.method_kwargs
        if not 0 <= kwargs.lamb <= 1:
            raise ConfigError(
                f"method_kwargs.lamb={kwargs.lamb} must be from 0 to 1: the loss is (1 - lamb) "
                "invariance + lamb SIGReg (for invariance + w SIGReg set lamb = w / (1 + w))"
            )
        if kwargs.num_directions < 1:
            raise ConfigError(
                f"method_kwargs.num_directions={kwargs.num_directions}: SIGReg needs at least 1"
            )
        return cfg

    def directions(self) -> Tensor:
        """This step's directions (proj_output_dim, num_directions), the same on all ranks.

        They follow from the seed and the step alone, so that a resumed run draws them again.
        """
        step = self.trainer.global_step if self._trainer is not None else 0
        generator = torch.Generator(self.device)
        generator.manual_seed(mix(int(omegaconf_select(self.cfg, "seed", 0)), step))
        return draw_directions(self.proj_output_dim, self.num_directions, generator)

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """Invariance and SIGReg over all views plus the online classifier's loss."""
        out = super().training_step(batch, batch_idx)
        z = torch.stack(out["z"])
        lejepa_loss = lejepa_loss_func(
            z[: self.num_large_crops],
            z[self.num_large_crops :],
            self.lamb,
            self.directions(),
            self.pool_views,
        )
        self._log_train(train_lejepa_loss=lejepa_loss)
        return lejepa_loss + out["loss"]
