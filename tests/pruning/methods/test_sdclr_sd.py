# SPDX-License-Identifier: MIT
"""SDCLR and SD: two branches of living weights (property 28), and what evaluation loads."""

import math

import pytest
import torch
from torch import nn

from solo.backbones import build_encoder
from solo.checkpoints.loading import load_encoder
from sparse_ext import sparsify
from sparse_ext.masks.dual_norms import DualBatchNorm1d
from tests.methods.helpers import tiny_batch, tiny_cfg, tiny_loaders, tiny_trainer
from tests.pruning.living import method
from tests.pruning.toys import data, toy, trainer

pytestmark = pytest.mark.unit


def test_sdclr_masks_the_smallest_every_epoch():
    """ceil(q N) over all layers, stem included; a scaled weight returns in the next epoch."""
    from lightning.pytorch import Callback

    model = method("simclr", {"name": "sdclr", "final": 0.3, "debug": True})
    seen = []

    class Watch(Callback):
        def on_train_batch_start(self, run, module, batch, index):
            pruner = module._pruning.pruner
            masks = torch.cat([m.flatten() for m in pruner.online.masks.values()])
            weights = torch.cat([w.flatten() for w in pruner.online.weights.values()])
            if index == 0:
                order = weights.abs().argsort(descending=True)
                expected = torch.zeros_like(masks)
                expected[order[: len(masks) - math.ceil(0.3 * len(masks))]] = True
                assert torch.equal(masks, expected)
                assert weights[~masks].count_nonzero() > 0.99 * (~masks).sum()
                if seen:
                    assert module.backbone.layer1[0].conv1.mask.view(-1)[self.scaled]
            seen.append(masks)

        def on_train_epoch_end(self, run, module):
            layer = module.backbone.layer1[0].conv1
            self.scaled = int((~layer.mask).view(-1).nonzero()[0])
            with torch.no_grad():
                layer.weight.view(-1)[self.scaled] = 3.0

    tiny_trainer(max_epochs=3, callbacks=[Watch()]).fit(model, *tiny_loaders())
    assert model._pruning.pruner.online.masks["conv1"].numel()
    assert all(torch.equal(seen[0], masks) for masks in seen[:4])
    assert not torch.equal(seen[3], seen[4])


def test_sdclr_doubles_the_norms_of_the_encoder_and_evaluates_the_dense_set(tmp_path):
    model = method("simclr", {"name": "sdclr"})
    model.projector.insert(1, nn.BatchNorm1d(16))
    run = tiny_trainer()
    run.fit(model, *tiny_loaders())
    run.save_checkpoint(tmp_path / "a.ckpt")
    norm = model.backbone.bn1
    assert type(model.projector[1]) is DualBatchNorm1d
    for key in ("running_mean", "weight"):
        assert not torch.equal(getattr(norm, key), getattr(norm.masked, key))
    assert norm.num_batches_tracked == norm.masked.num_batches_tracked == 8
    optimized = {id(p) for g in run.optimizers[0].param_groups for p in g["params"]}
    assert id(norm.masked.weight) in optimized
    report = load_encoder(build_encoder(tiny_cfg("simclr")), tmp_path / "a.ckpt")
    assert report.figures == {}
    state = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]
    own = report.backbone.state_dict()
    assert not any("mask" in key for key in own)
    assert all(torch.equal(own[key], state[f"backbone.{key}"]) for key in own)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(report.backbone.eval()(x), model.backbone.eval()(x))


def test_sdclr_trains_both_branches_with_the_plain_loss():
    model = method("simclr", {"name": "sdclr", "final": 0.5})
    run = tiny_trainer(max_epochs=1, limit_train_batches=1)
    run.fit(model, *tiny_loaders())
    model.zero_grad()
    model.log_dict = lambda *a, **k: None
    model.train().training_step(tiny_batch(), 0).backward()
    layer = model.backbone.layer4[1].conv2
    assert layer.weight.grad[~layer.mask].any()
    assert model.backbone.bn1.masked.weight.grad.any()
    assert model.backbone.bn1.weight.grad.any()


# -- SD -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("reverse", [False, True])
def test_sd_pair(reverse, tmp_path):
    """Pruned weights rest in the shadow with their value; masks change at epoch starts only."""
    from lightning.pytorch import Callback

    section = {"name": "sd", "final": 0.8, "reverse": reverse, "debug": True}
    model = toy()
    callback = sparsify(model, section)
    seen, rest = [], []

    class Watch(Callback):
        def on_train_batch_start(self, run, module, batch, index):
            sparse = callback.pruner.encoders[reverse]
            latents = torch.cat([w.flatten() for w in sparse.latents.values()])
            masks = torch.cat([m.flatten() for m in sparse.masks.values()])
            if index == 0:
                expected = torch.zeros_like(masks)
                order = latents.abs().argsort(descending=True)
                expected[order[: round(0.2 * len(masks))]] = True
                assert torch.equal(masks, expected)
            seen.append(masks)
            rest.append(latents.clone())

    trainer(epochs=3, callbacks=[Watch()]).fit(model, data())
    n = callback.pruner.online.masks.n
    kept = [round(0.2 * n), n]
    assert callback.pruner.kept == (kept[::-1] if reverse else kept)
    assert not torch.equal(seen[4], seen[5])
    for a, b in ((0, 4), (5, 9)):
        assert torch.equal(seen[a], seen[b])
        if not reverse:  # weight decay and momentum do not move them either
            off = ~seen[a]
            assert torch.equal(rest[a][off], rest[b][off])
            assert not torch.equal(rest[a][~off], rest[b][~off])


@pytest.mark.parametrize("name", ["barlow_twins", "simclr"])
def test_sd_with_one_encoder_evaluates_the_masked_network(name, tmp_path):
    model = method(name, {"name": "sd", "final": 0.9, "debug": True})
    run = tiny_trainer()
    run.fit(model, *tiny_loaders())
    run.save_checkpoint(tmp_path / "a.ckpt")
    layer = model.backbone.layer2[0].conv1
    assert layer.weight[~layer.mask].all()
    report = load_encoder(build_encoder(tiny_cfg(name)), tmp_path / "a.ckpt")
    n = model._pruning.pruner.online.masks.n
    assert report.figures["kept_weights"] == round(0.1 * n) == model._pruning.pruner.kept[0]
    own = report.backbone.state_dict()
    assert not own["layer2.0.conv1.weight"][~own["layer2.0.conv1.mask"]].any()
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(report.backbone.eval()(x), model.backbone.eval()(x))
