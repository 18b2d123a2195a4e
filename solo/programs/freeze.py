# SPDX-License-Identifier: MIT
"""Parts of an encoder that stay as they started for the first epochs of continued pretraining."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.optim import Optimizer

from solo.errors import ConfigError, did_you_mean


class FrozenModules(Callback):
    """Keeps modules of `backbone` unchanged, batch statistics included, until an epoch begins.

    Their gradients are computed and thrown away before the optimizer's step, so the set of
    parameters that processes exchange stays the same when they thaw.

    Args:
        names: of modules inside the backbone, such as `["conv1", "bn1", "layer1"]`.
        epochs: number of the first epoch (from 0) in which they train.
    """

    def __init__(self, names: Sequence[str], epochs: int) -> None:
        self.names = tuple(names)
        self.epochs = epochs
        self._modules: list[nn.Module] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the modules that stay frozen, before training starts.

        Raises:
            ConfigError: the backbone has no module of that name.
        """
        backbone: Any = pl_module.backbone
        known = dict(getattr(backbone, "_orig_mod", backbone).named_modules())
        for name in self.names:
            if not name or name not in known:
                hint = did_you_mean(name, filter(None, known))
                raise ConfigError(f"freeze.modules: the backbone has no module '{name}'. {hint}")
        self._modules = [known[name] for name in self.names]

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Batch norms of frozen modules use the statistics that they came with."""
        frozen = trainer.current_epoch < self.epochs
        if frozen or (trainer.current_epoch == self.epochs and batch_idx == 0):
            for module in self._modules:
                module.train(not frozen)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """The optimizer leaves a parameter without gradient alone, weight decay included."""
        if trainer.current_epoch < self.epochs:
            for module in self._modules:
                for parameter in module.parameters():
                    parameter.grad = None
