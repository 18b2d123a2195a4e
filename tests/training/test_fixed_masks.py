# SPDX-License-Identifier: MIT
"""Fine-tuning a sparse encoder: masks stay, pruned weights stay zero, kept ones train."""

import lightning.pytorch as pl
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from solo.methods.linear import LinearModel
from sparse_ext.extension import register
from sparse_ext.masks.masked_layers import mask_module

pytestmark = pytest.mark.unit


class Encoder(nn.Module):
    num_features = 8

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 8)

    def forward(self, x):
        return torch.relu(self.layer(x))


def finetuned(optimizer, masked=True, **kwargs):
    register()
    torch.manual_seed(0)
    encoder = Encoder()
    if masked:
        mask_module(encoder.layer)
        encoder.layer.mask.copy_(torch.arange(48).view(8, 6) % 3 == 0)
        with torch.no_grad():
            encoder.layer.weight.mul_(encoder.layer.mask)
    before = encoder.layer.weight.detach().clone()
    cfg = OmegaConf.create(
        {
            "data": {"num_classes": 3},
            "optimizer": {"batch_size": 4, "lr": 0.1, "weight_decay": 0.1, **optimizer},
            "scheduler": {"name": "none"},
            "performance": {"disable_channel_last": True},
            "finetune": True,
            "max_epochs": 2,
        }
    )
    model = LinearModel(encoder, cfg)
    data = DataLoader(TensorDataset(torch.randn(16, 6), torch.arange(16) % 3), batch_size=4)
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, **kwargs,
    )  # fmt: skip
    trainer.fit(model, data)
    return encoder, before, trainer


@pytest.mark.parametrize(
    "optimizer",
    [
        {"name": "sgd", "kwargs": {"momentum": 0.9}},
        {"name": "adamw"},
        {"name": "lars", "kwargs": {"momentum": 0.9}},
    ],
    ids=lambda o: o["name"],
)
def test_pruned_weights_and_their_state_stay_zero(optimizer):
    encoder, before, trainer = finetuned(optimizer, gradient_clip_val=1.0)
    weight, mask = encoder.layer.weight.detach(), encoder.layer.mask
    assert mask.sum() == 16
    assert (weight[~mask] == 0).all()
    assert (weight[mask] != before[mask]).all()
    for state in trainer.optimizers[0].state[encoder.layer.weight].values():
        if state.shape == weight.shape:
            assert (state[~mask] == 0).all()


def test_clipping_sees_kept_gradients_only(monkeypatch):
    norms = []
    clip = torch.nn.utils.clip_grad_norm_

    def recording(parameters, *args, **kwargs):
        parameters = list(parameters)
        norms.extend(float(p.grad[p == 0].abs().sum()) for p in parameters if p.shape == (8, 6))
        return clip(parameters, *args, **kwargs)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", recording)
    finetuned({"name": "sgd"}, gradient_clip_val=1.0)
    assert norms == [0.0] * 8


def test_a_dense_encoder_gets_no_callback():
    _, _, trainer = finetuned({"name": "sgd"}, masked=False)
    assert not any(type(c).__name__ == "FixedMasks" for c in trainer.callbacks)
