# SPDX-License-Identifier: MIT
"""Tiny modules, data and trainers for tests of the sparse runtime."""

from __future__ import annotations

import copy
import warnings

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from solo.utils.momentum import MomentumUpdater
from sparse_ext.masks.encoder import Encoder
from sparse_ext.masks.masking import patch
from sparse_ext.pruning.registry import build_pruner, method_class
from sparse_ext.schedules import Clock

warnings.filterwarnings("ignore", module="lightning")


def tiny_net(width: int = 8) -> nn.Sequential:
    """Stem, two convolutions, one linear layer; 3 prunable layers."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, width),
    )


class Toy(pl.LightningModule):
    """Online net predicts the momentum net's output (or a fixed target without one)."""

    def __init__(self, momentum=True, optimizer=None, updater=True, tau=0.9, width=8):
        super().__init__()
        self.backbone = tiny_net(width)
        self.predictor = nn.Linear(width, width)
        self.optimizer = optimizer or (lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=1e-3))
        self.tau = tau
        if momentum:
            self.momentum_backbone = copy.deepcopy(self.backbone).requires_grad_(False)
            if updater:
                self.momentum_updater = MomentumUpdater(tau, tau)
        self.last_step = 0

    def training_step(self, batch, batch_idx):
        x, target = batch
        out = self.predictor(self.backbone(x))
        if hasattr(self, "momentum_backbone"):
            target = target + self.momentum_backbone(x.flip(-1)).detach()
        return nn.functional.mse_loss(out, target)

    def on_train_batch_end(self, *_):
        if not hasattr(self, "momentum_backbone") or self.trainer.global_step <= self.last_step:
            return
        self.last_step = self.trainer.global_step
        if hasattr(self, "momentum_updater"):
            self.momentum_updater.update(self.backbone, self.momentum_backbone)
            return
        pairs = zip(self.backbone.parameters(), self.momentum_backbone.parameters(), strict=True)
        for online, mine in pairs:
            mine.data = self.tau * mine.data + (1 - self.tau) * online.data

    def configure_optimizers(self):
        return self.optimizer(self.parameters())


def toy(seed=0, **kwargs) -> Toy:
    """A Toy with reproducible weights."""
    torch.manual_seed(seed)
    return Toy(**kwargs)


def data(batches=5, size=4, seed=1, image=8, width=8) -> DataLoader:
    """Fixed batches in a fixed order."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(batches * size, 3, image, image, generator=g)
    y = torch.randn(batches * size, width, generator=g)
    return DataLoader(TensorDataset(x, y), batch_size=size)


def trainer(tmp_path=None, epochs=2, **kwargs) -> pl.Trainer:
    """A silent CPU trainer."""
    defaults = {
        "max_epochs": epochs,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": tmp_path,
    }
    return pl.Trainer(**{**defaults, **kwargs})


def pruner_of(config, clock=None, seed=0, shared=False, width=8):
    """A pruner on fresh equal encoders, without Lightning."""
    torch.manual_seed(seed)
    net = patch(tiny_net(width), config)
    online = Encoder(net)
    momentum = None if shared else Encoder(copy.deepcopy(net))
    method = method_class(config)
    for encoder in (online, momentum):
        if encoder is not None and method.needs(config, shared).latents:
            encoder.add_buffer("shadow")
    if method.needs(config, shared).mean_gradient:
        online.add_buffer("score")
    clock = clock or Clock(steps=100, epochs=10, steps_per_epoch=10)
    return build_pruner(config, online, momentum, clock, seed)
