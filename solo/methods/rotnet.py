# SPDX-License-Identifier: MIT
"""RotNet (Gidaris et al. 2018): which of four quarter turns has an image been given?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from solo.losses.rotnet import balanced_turns, rotate
from solo.methods.base import BaseMethod
from solo.methods.heads import Head
from solo.utils.metrics import accuracy_at_k


class RotNet(BaseMethod):
    """Cross-entropy over the four rotations, which come after cropping and flipping.

    One rotation per view and step, as many of each kind (Caron et al.); with `all4` every view in
    all four, so that the encoder sees four times the batch (Gidaris et al., section 2.2).
    """

    KWARGS = {"all4": False}
    HEADS = {"rotation_head": Head("rotation")}
    LARGE_CROPS = None

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        self.all4: bool = cfg.method_kwargs.all4
        self.rotation_head = nn.Linear(self.features_dim, 4)

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """Rotation loss plus the loss of the classifier, which sees the turned images, too."""
        indexes, X, targets = batch
        X = [X] if isinstance(X, Tensor) else X
        if self.all4:
            n = len(targets)
            X = [x.repeat(4, 1, 1, 1) for x in X]
            indexes, targets = indexes.repeat(4), targets.repeat(4)
            turns = [torch.arange(4, device=x.device).repeat_interleave(n) for x in X]
        else:
            turns = [balanced_turns(len(x), x.device) for x in X]
        X = [rotate(x, t) for x, t in zip(X, turns, strict=True)]
        out = super().training_step([indexes, X, targets], batch_idx)
        logits, labels = torch.cat(out["rotation"]), torch.cat(turns)
        rotation_loss = F.cross_entropy(logits, labels)
        (accuracy,) = accuracy_at_k(logits, labels, top_k=(1,))
        self._log_train(train_rotation_loss=rotation_loss, train_rotation_acc=accuracy)
        return rotation_loss + out["loss"]

    def validation_step(
        self,
        batch: Sequence[Tensor],
        batch_idx: int,
        dataloader_idx: int | None = None,
        update_validation_step_outputs: bool = True,
    ) -> dict[str, Any]:
        """As `BaseMethod`'s, with `val_rotation_acc`: the images are turned 0, 1, 2, 3, 0, ..."""
        metrics = super().validation_step(batch, batch_idx, dataloader_idx, False)
        X = batch[0]
        turns = torch.arange(len(X), device=X.device) % 4
        logits = self(rotate(X, turns))["rotation"]
        (metrics["val_rotation_acc"],) = accuracy_at_k(logits, turns, top_k=(1,))
        if update_validation_step_outputs:
            self.validation_step_outputs.append(metrics)
        return metrics

    def on_validation_epoch_end(self) -> None:
        """As `BaseMethod`'s, with the accuracy of the rotations."""
        self.log_dict(self._epoch_means("val_rotation_acc"), sync_dist=True)
        super().on_validation_epoch_end()
