# SPDX-License-Identifier: MIT
"""Training on several labels per image: full fine-tuning on VOC 2007 (Caron et al., figure 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from solo.data.catalogue import named
from solo.errors import ConfigError
from solo.losses.multilabel import multilabel_loss_func
from solo.methods.base import BaseMethod
from solo.methods.supervised import LabelsMixin
from solo.utils.ranks import concat_all_gather_no_grad
from solo.utils.views import encoding
from solo.utils.voc_svm import mean_average_precision


class MultiLabel(LabelsMixin, BaseMethod):
    """A sigmoid per class on one view; `val_map` is the mean average precision in per cent."""

    KWARGS: dict[str, Any] = {}
    LARGE_CROPS = None

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        self._validated: list[tuple[Tensor, Tensor]] = []

    @classmethod
    def add_and_assert_specific_cfg(cls, cfg: DictConfig) -> DictConfig:
        """As the method's; refuses data with one label per image, more views, and online kNN."""
        cfg = super().add_and_assert_specific_cfg(cfg)
        several = named(lambda info: info.multilabel)
        if cfg.data.dataset not in several:
            raise ConfigError(
                f"multilabel learns from {', '.join(several)}, and the images of "
                f"data.dataset={cfg.data.dataset} have one label each: write method=supervised"
            )
        if cfg.data.num_large_crops != 1 or cfg.data.num_small_crops:
            raise ConfigError("multilabel sees each image once: set augmentations.0.num_crops=1")
        if cfg.knn_eval.enabled:
            raise ConfigError("knn_eval needs one label per image: set knn_eval.enabled=False")
        return cfg

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """Compute the multi-label loss of the one view of a batch."""
        _, (X,), targets = batch
        with encoding(0, "online"):
            loss = multilabel_loss_func(self(X)["logits"], targets)
        self._log_train(train_class_loss=loss)
        return self._with_extensions(loss, [X])

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> dict[str, Any]:  # type: ignore[override]
        """`val_loss` of one batch; the scores are kept for the end of the epoch."""
        X, targets = batch
        logits = self(X)["logits"]
        self._validated.append((logits.float(), targets))
        metrics = {"batch_size": len(X), "val_loss": multilabel_loss_func(logits, targets)}
        self.validation_step_outputs.append(metrics)
        return metrics

    def on_validation_epoch_end(self) -> None:
        """Log the loss, and the precision over what all processes have seen."""
        logits, targets = map(torch.cat, zip(*self._validated, strict=True))
        logits, targets = concat_all_gather_no_grad(logits), concat_all_gather_no_grad(targets)
        precision = 100 * mean_average_precision(logits.cpu().numpy(), targets.cpu().numpy())
        self.log_dict({**self._epoch_means("val_loss"), "val_map": precision}, sync_dist=True)
        self.validation_step_outputs.clear()
        self._validated.clear()
