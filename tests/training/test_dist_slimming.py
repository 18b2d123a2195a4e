# SPDX-License-Identifier: MIT
"""Slimming while two gloo processes train: they end as one process with the joint batches."""

import copy

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from solo.utils.momentum import MomentumUpdater
from sparse_ext import sparsify
from tests.pruning.toys import trainer
from tests.training.processes import launch

pytestmark = pytest.mark.dist
SECTION = {
    "name": "gmp",
    "granularity": "filter",
    "coupled": True,
    "stem_dense": False,
    "final": 0.5,
    "update_period": 2,
    "ramp_end": 0.5,
    "slim_at": 10,
    "multiple": 4,
}
STEPS, BATCH = 16, 4


class Pair(pl.LightningModule):
    """No batch norm, so that the mean of two ranks' gradients is the joint batch's."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 16, 3, bias=False), nn.ReLU(), nn.Conv2d(16, 24, 3, groups=4), nn.GELU(),
            nn.Flatten(2), LastMean(), nn.LayerNorm(24), nn.Linear(24, 16), nn.ReLU(),
            nn.Linear(16, 5),
        )  # fmt: skip
        self.momentum_backbone = copy.deepcopy(self.backbone).requires_grad_(False)
        self.momentum_updater = MomentumUpdater(0.9, 0.9)
        self.wrapped = []

    def training_step(self, batch, index):
        x, target = batch
        strategy = self.trainer.strategy
        self.wrapped.append(isinstance(strategy.model, DistributedDataParallel))
        out = self.backbone(x) + self.momentum_backbone(x.flip(-1)).detach()
        return nn.functional.mse_loss(out, target)

    def on_train_batch_end(self, *_):
        self.momentum_updater.update(self.backbone, self.momentum_backbone)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.backbone.parameters(), 0.01)


class LastMean(nn.Module):
    def forward(self, x):
        return x.mean(-1)


def images(rank):
    """What one rank sees; None: both, in joint batches."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(STEPS, 2, BATCH, 3, 8, 8, generator=generator)
    y = torch.randn(STEPS, 2, BATCH, 5, generator=generator)
    x, y = (x[:, rank], y[:, rank]) if rank is not None else (x.flatten(1, 2), y.flatten(1, 2))
    return DataLoader(TensorDataset(x.flatten(0, 1), y.flatten(0, 1)), batch_size=len(x[0]))


def train(rank, **options):
    torch.manual_seed(0)
    model = Pair()
    callback = sparsify(model, SECTION)
    run = trainer(max_epochs=1, **options)
    run.fit(model, images(rank))
    return {
        "weights": {n: p.detach().numpy().copy() for n, p in model.named_parameters()},
        "state": sum(v.numel() for s in run.optimizers[0].state.values() for v in s.values()),
        "slimmed": callback.pruner.slimmed is not None,
        "wrapped": model.wrapped,
    }


def test_two_processes_end_as_one_with_the_joint_batches():
    two = launch(train_two)
    one = train(None)
    assert all(result["slimmed"] for result in two)
    assert all(all(result["wrapped"]) for result in two)
    for name, weight in one["weights"].items():
        np.testing.assert_array_equal(two[0]["weights"][name], two[1]["weights"][name])
        np.testing.assert_allclose(two[0]["weights"][name], weight, rtol=1e-3, atol=1e-5)
    full = {n: p.shape for n, p in Pair().named_parameters()}
    assert one["weights"]["backbone.0.weight"].shape[0] < full["backbone.0.weight"][0]
    assert one["weights"]["backbone.7.weight"].shape[0] in (4, 8, 12)
    assert two[0]["state"] == one["state"] < 2 * sum(s.numel() for s in full.values())


def train_two(rank):
    return train(rank, devices=2, strategy="ddp", use_distributed_sampler=False)
