# SPDX-License-Identifier: MIT
"""VIbCReg (Lee & Aune 2021): VICReg with a normalised covariance and a whitening projector."""

from __future__ import annotations

from omegaconf import DictConfig
from torch import nn

from solo.losses.vibcreg import vibcreg_loss_func
from solo.methods.heads import mlp
from solo.methods.vicreg import VICReg
from solo.utils.whitening import IterNorm


class VIbCReg(VICReg):
    """VICReg's step with its own covariance; `iternorm` ends the projector with whitening."""

    KWARGS = {**VICReg.KWARGS, "cov_loss_weight": 200.0, "iternorm": False}
    LOSS = staticmethod(vibcreg_loss_func)
    METRIC = "train_vibcreg_loss"

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        kwargs = cfg.method_kwargs
        hidden, out = kwargs.proj_hidden_dim, kwargs.proj_output_dim
        self.projector = mlp(self.features_dim, hidden, hidden, out, activation=nn.GELU)
        self.projector.append(IterNorm(out, num_groups=64) if kwargs.iternorm else nn.Identity())
