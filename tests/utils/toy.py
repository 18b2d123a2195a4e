# SPDX-License-Identifier: MIT
"""A module that trains in milliseconds, to exercise callbacks."""

import lightning.pytorch as pl
import torch
from omegaconf import OmegaConf
from torch.utils.data import DataLoader, TensorDataset


class Toy(pl.LightningModule):
    """One linear layer called backbone; loss is the mean square of its noisy output."""

    def __init__(self, interval="step", explode_at=None):
        super().__init__()
        self.backbone = torch.nn.Linear(4, 3)
        self.interval, self.explode_at = interval, explode_at

    def training_step(self, batch, batch_idx):
        noise = torch.randn(3)
        loss = ((self.backbone(batch[0]) + noise) ** 2).mean()
        if self.explode_at == self.trainer.global_step:
            loss = loss * torch.nan
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val", self.backbone(batch[0]).mean())

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return [optimizer], [{"scheduler": schedule, "interval": self.interval}]


def loader():
    """Three batches of four; labels 0 to 2."""
    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(3))
    return DataLoader(TensorDataset(x, torch.arange(12) % 3), 4)


def cfg(**kwargs):
    """What the callbacks read of a configuration."""
    return OmegaConf.create({"name": "toy", "method": "toy", "optimizer": {"lr": 0.1}, **kwargs})


def fit(module, callbacks, *, epochs=3, val=False, ckpt=None, logger=False, **kwargs):
    """Train; returns the trainer."""
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        callbacks=callbacks,
        logger=logger,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **kwargs,
    )
    trainer.fit(module, loader(), loader() if val else None, ckpt_path=ckpt, weights_only=True)
    return trainer
