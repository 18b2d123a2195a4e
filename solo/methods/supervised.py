# SPDX-License-Identifier: MIT
"""Training on labels: the classifier's cross-entropy reaches the encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig
from torch import Tensor, nn

from solo.errors import ConfigError
from solo.methods.base import BaseMethod
from solo.utils.misc import omegaconf_select


class LabelsMixin(nn.Module):
    """Makes a method's classifier part of the network: its gradient, learning rate and decay.

    Raises:
        ConfigError: for a data set without labels.
    """

    @classmethod
    def add_and_assert_specific_cfg(cls, cfg: DictConfig) -> DictConfig:
        """Check the method's configuration and refuse `data.no_labels`."""
        cfg = super().add_and_assert_specific_cfg(cfg)  # type: ignore[misc]
        if omegaconf_select(cfg, "data.no_labels", False):
            raise ConfigError(f"{cfg.method} learns from labels: remove data.no_labels=True")
        return cfg

    def _classifier_group(self, name: str) -> dict[str, Any]:
        return {"name": name, "params": getattr(self, name).parameters()}

    def forward(self, X: Tensor) -> dict[str, Tensor]:
        """As the method's; `logits` let the gradient through."""
        out = super().forward(X)  # type: ignore[misc]
        return {**out, "logits": self.classifier(out["feats"])}


class Supervised(LabelsMixin, BaseMethod):
    """Cross-entropy on the labels, averaged over any number of large crops."""

    KWARGS: dict[str, Any] = {}
    LARGE_CROPS = None

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """Compute the cross-entropy of the classifier on every view."""
        return super().training_step(batch, batch_idx)["loss"]
