# SPDX-License-Identifier: MIT
"""SR-STE and MCP: living weights under masks of their present size, and what evaluation loads."""

import pytest
import torch

from solo.backbones import build_encoder
from solo.checkpoints.loading import load_encoder
from solo.utils.views import encoding
from sparse_ext import sparsify
from sparse_ext.masks.granularity import NM
from sparse_ext.masks.living_weights import branch
from tests.methods.helpers import tiny_cfg, tiny_loaders, tiny_trainer
from tests.pruning.living import method
from tests.pruning.toys import Toy, data, toy, trainer

pytestmark = pytest.mark.unit


def nm_mask(weight, n, m):
    groups = weight.movedim(1, -1).reshape(-1, m)
    best = groups.abs().argsort(dim=1, descending=True, stable=True)[:, :n]
    keep = torch.zeros_like(groups, dtype=torch.bool).scatter(1, best, True)
    shape = weight.shape
    return keep.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("granularity", ["2:4", "1:4"])
def test_sr_ste_gradient_and_masks(granularity, accumulate):
    """dW = g + lambda (1 - mask) W, once per step; the mask follows W after every step."""
    from lightning.pytorch import Callback

    model = toy()
    section = {"name": "sr_ste", "granularity": granularity, "decay": 0.25, "debug": True}
    callback = sparsify(model, section)
    n, m = (int(k) for k in granularity.split(":"))
    grads = []

    class Before(Callback):  # on_after_backward: dense straight-through gradient
        def on_after_backward(self, run, module):
            self.grads = {k: v.weight.grad.clone() for k, v in layers().items()}

        def on_before_optimizer_step(self, run, module, optimizer):
            for name, layer in layers().items():
                expected = self.grads[name] + 0.25 * layer.weight * ~layer.mask
                torch.testing.assert_close(layer.weight.grad, expected)
                assert self.grads[name][~layer.mask].any()
                grads.append(name)

        def on_train_batch_start(self, run, module, batch, index):
            for encoder in callback.pruner.encoders:
                for layer in encoder.layers.values():
                    assert torch.equal(layer.mask, nm_mask(layer.weight.detach(), n, m))
                    assert layer.weight[~layer.mask].any()

    def layers():
        return callback.pruner.online.layers

    run = trainer(epochs=2, callbacks=[Before()], accumulate_grad_batches=accumulate)
    run.fit(model, data(batches=6))
    assert len(grads) == 3 * 12 // accumulate
    assert callback.pruner.t == 12 // accumulate


def test_sr_ste_checkpoints_are_hard_masked(tmp_path):
    model = method("mocov2plus", {"name": "sr_ste"})
    run = tiny_trainer()
    run.fit(model, *tiny_loaders())
    run.save_checkpoint(tmp_path / "a.ckpt")
    for encoder in ("online", "momentum"):
        net = build_encoder(tiny_cfg("mocov2plus"))
        report = load_encoder(net, tmp_path / "a.ckpt", encoder)
        assert report.figures["sparsity"] == 0.5
        assert NM(2, 4).satisfied(report.backbone.layer3[0].conv1.weight.detach())
    # the momentum encoder is a plain average of living weights
    assert type(model.momentum_updater).__name__ == "MomentumUpdater"
    x = torch.randn(2, 3, 8, 8)
    net = load_encoder(build_encoder(tiny_cfg("mocov2plus")), tmp_path / "a.ckpt").backbone
    torch.testing.assert_close(net.eval()(x), model.backbone.eval()(x))


# -- MCP ----------------------------------------------------------------------------------------


def test_mcp_follows_admm(caplog):
    """Z, U and the penalty against a plain recomputation; the subnet has per-layer filters."""
    from lightning.pytorch import Callback

    class Announcing(Toy):
        def training_step(self, batch, index):
            with encoding(0):
                return super().training_step(batch, index)

    torch.manual_seed(0)
    model = Announcing()
    section = {"name": "mcp", "admm_end": 0.5, "rho_start": 0.01, "rho_end": 0.04}
    callback = sparsify(model, section)

    def proj(w):
        norms = w.flatten(1).square().sum(1)
        keep = norms.argsort(descending=True, stable=True)[: w.shape[0] // 2]
        out = torch.zeros_like(w)
        out[keep] = w[keep]
        return out

    class Watch(Callback):
        steps = 0

        def on_train_batch_start(self, run, module, batch, index):
            layers = callback.pruner.online.layers
            weights = {k: v.weight.detach().clone() for k, v in layers.items()}
            if run.global_step == 0:
                self.u = {k: torch.zeros_like(w) for k, w in weights.items()}
                self.z = {k: proj(w) for k, w in weights.items()}
            elif index == 0 and run.current_epoch <= 2:
                self.z = {k: proj(w + self.u[k]) for k, w in weights.items()}
                self.u = {k: self.u[k] + w - self.z[k] for k, w in weights.items()}
            self.weights = weights

        def on_after_backward(self, run, module):
            self.grads = {
                k: v.weight.grad.clone() for k, v in callback.pruner.online.layers.items()
            }

        def on_before_optimizer_step(self, run, module, optimizer):
            rho = {0: 0.01, 1: 0.04}.get(run.current_epoch, 0.0)
            for name, layer in callback.pruner.online.layers.items():
                pull = self.weights[name] - self.z[name] + self.u[name]
                expected = self.grads[name] + rho * pull
                torch.testing.assert_close(layer.weight.grad, expected)
                self.steps += 1

    watch = Watch()
    with caplog.at_level("WARNING", "sparse_ext"):
        trainer(epochs=4, callbacks=[watch]).fit(model, data())
    assert "reconstruction" in caplog.text
    assert watch.steps == 60
    momentum = callback.pruner.momentum
    for name, mask in momentum.masks.items():
        kept = mask.flatten(1).any(1)
        assert int(kept.sum()) == mask.shape[0] // 2, name
        assert torch.equal(kept, mask.flatten(1).all(1))
    assert callback.pruner.kept[0] == callback.pruner.online.masks.n
    assert momentum.layers["3"].weight.count_nonzero() == momentum.layers["3"].weight.numel()
    norm = model.momentum_backbone[1]
    assert norm.num_batches_tracked == 20
    assert norm.masked.num_batches_tracked == 10
    assert norm.masked.weight is norm.weight


def test_the_subnet_of_mcp_is_what_its_momentum_encoder_evaluates_to(tmp_path):
    model = method("mocov2plus", {"name": "mcp"})
    run = tiny_trainer()
    run.fit(model, *tiny_loaders())
    run.save_checkpoint(tmp_path / "a.ckpt")
    net = build_encoder(tiny_cfg("mocov2plus"))
    report = load_encoder(net, tmp_path / "a.ckpt", "momentum")
    assert report.figures["sparsity"] == pytest.approx(0.5)
    x = torch.randn(2, 3, 8, 8)
    expected = model.momentum_backbone.eval()(x)
    torch.testing.assert_close(report.backbone.eval()(x), expected)
    with branch(masked=False):
        assert not torch.allclose(model.momentum_backbone(x), expected)
    online = load_encoder(build_encoder(tiny_cfg("mocov2plus")), tmp_path / "a.ckpt")
    assert online.figures == {}
