# SPDX-License-Identifier: MIT
"""Living weights under masks: SDCLR, SD, SR-STE, MCP (property 28) and what evaluation loads."""

import math

import pytest
import torch
from torch import nn

from solo.backbones import build_encoder
from solo.errors import ConfigError
from solo.methods import METHODS
from solo.utils.views import encoding
from solo.utils.weights import load_encoder
from sparse_ext import enable, sparsify
from sparse_ext.config import build
from sparse_ext.encoder import Encoder, patch
from sparse_ext.functional import (
    ALWAYS,
    Branches,
    DualBatchNorm1d,
    branch,
    make_dual,
    make_functional,
)
from sparse_ext.granularity import NM
from tests.methods.helpers import tiny_batch, tiny_cfg, tiny_loaders, tiny_trainer
from tests.sparse.toys import Toy, data, toy, trainer

pytestmark = pytest.mark.unit

KWARGS = {
    "byol": {"proj_hidden_dim": 16, "proj_output_dim": 8, "pred_hidden_dim": 16},
    "simclr": {"proj_hidden_dim": 16, "proj_output_dim": 8, "temperature": 0.2},
    "barlow_twins": {"proj_hidden_dim": 16, "proj_output_dim": 8},
    "mocov2plus": {
        "proj_hidden_dim": 16, "proj_output_dim": 8, "temperature": 0.2, "queue_size": 16,
    },
}  # fmt: skip
FIRST_DENSE = Branches(first=False, others=True, evaluation=False)


def method(name, sparse, **changes):
    cfg = tiny_cfg(name, dict(KWARGS[name]), seed=5, **changes)
    if sparse is not None:
        cfg.sparse = sparse
        enable(cfg)
    torch.manual_seed(0)
    return METHODS[name](METHODS[name].add_and_assert_specific_cfg(cfg))


def two_layers():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5)).double()
    patch(net, build({"name": "gmp", "stem_dense": False}))
    g = torch.Generator().manual_seed(0)
    for layer in (net[0], net[3]):
        layer.mask.copy_(torch.rand(layer.mask.shape, generator=g) < 0.5)
    return net


def test_branches_follow_the_announced_view():
    net = two_layers()
    encoder = make_functional(Encoder(net), FIRST_DENSE)
    x = torch.randn(2, 3, 4, 4).double()
    dense = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5)).double()
    outs = {}
    for name in ("dense", "masked"):
        for mine, other in zip((dense[0], dense[3]), (net[0], net[3]), strict=True):
            keep = other.mask if name == "masked" else torch.ones_like(other.mask)
            mine.weight.data.copy_(other.weight * keep)
            mine.bias.data.copy_(other.bias)
        outs[name] = dense(x)
    with encoding(0):
        assert torch.equal(net(x), outs["dense"])
    for index in (1, 2):
        with encoding(index):
            assert torch.equal(net(x), outs["masked"])
    net.eval()
    assert torch.equal(net(x), outs["dense"])
    with branch(masked=True):
        assert torch.equal(net(x), outs["masked"])
    with pytest.raises(ConfigError, match=r"does not say which view.*encoding\(index\)"):
        net.train()(x)
    assert net[0].weight[~net[0].mask].all()
    encoder.project()
    encoder.mask_gradients()
    assert net[0].weight[~net[0].mask].all()


def test_one_pass_gives_the_gradients_of_two():
    """Property 28: the masked branch gives none to pruned weights, the dense one does."""
    net = two_layers()
    make_functional(Encoder(net), FIRST_DENSE)
    x = torch.randn(6, 3, 4, 4).double()

    def outs():
        with encoding(0):
            a = net(x[:3])
        with encoding(1):
            return a, net(x[3:])

    def grads(loss):
        return torch.autograd.grad(loss, net[3].weight)[0]

    a, b = outs()
    both = grads((a - b).square().sum())
    a, b = outs()
    dense = grads((a - b.detach()).square().sum())
    a, b = outs()
    masked = grads((a.detach() - b).square().sum())
    torch.testing.assert_close(both, dense + masked, rtol=0, atol=1e-6)
    off = ~net[3].mask
    assert not masked[off].any()
    assert (dense[off] != 0).any()


def test_dual_norms_keep_two_sets():
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    assert make_dual([net], FIRST_DENSE) == 1
    assert make_dual([net], FIRST_DENSE) == 1
    assert type(net[1]) is DualBatchNorm1d
    assert type(net[1].masked) is nn.BatchNorm1d
    x = torch.randn(8, 4)
    for index, norm in ((0, net[1]), (1, net[1].masked)):
        before = {k: v.clone() for k, v in net.state_dict().items()}
        with encoding(index):
            net(x)
        changed = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
        prefix = "1." if norm is net[1] else "1.masked."
        assert changed == {
            prefix + k for k in ("running_mean", "running_var", "num_batches_tracked")
        }
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    assert type(synced[1]) is nn.SyncBatchNorm
    make_dual([synced], FIRST_DENSE)
    assert type(synced[1]).__name__ == "DualSyncBatchNorm"
    assert type(synced[1].masked) is nn.SyncBatchNorm

    class Strange(nn.BatchNorm2d):
        pass

    with pytest.raises(ConfigError, match=r"a Strange is none.*sparse\.dual_bn=false"):
        make_dual([nn.Sequential(Strange(3))], FIRST_DENSE)


def test_straight_through_gradients():
    net = two_layers()
    make_functional(Encoder(net), ALWAYS, straight=True)
    x = torch.randn(3, 3, 4, 4).double()
    net(x).square().sum().backward()
    plain = two_layers()
    plain.load_state_dict(net.state_dict(), strict=False)
    for layer in (plain[0], plain[3]):
        layer.apply_mask()
    plain(x).square().sum().backward()
    for mine, other in ((net[0], plain[0]), (net[3], plain[3])):
        torch.testing.assert_close(mine.weight.grad, other.weight.grad)
        assert mine.weight.grad[~mine.mask].any()


# -- SDCLR --------------------------------------------------------------------------------------


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


# -- SR-STE -------------------------------------------------------------------------------------


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


# -- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("momentum", "section", "message"),
    [
        (True, "sdclr", r"methods with one encoder.*\+sparse=sd"),
        (False, {"name": "sd", "reverse": True}, r"Toy has none\. Leave sparse\.reverse out"),
        (False, "mcp", "prunes the momentum encoder, and Toy has none"),
    ],
)
def test_methods_on_the_wrong_kind_of_encoder(momentum, section, message):
    model = toy(momentum=momentum)
    sparsify(model, section)
    with pytest.raises(ConfigError, match=message):
        trainer().fit(model, data())


def test_views_that_nobody_announces():
    model = toy(momentum=False)
    sparsify(model, "sdclr")
    with pytest.raises(ConfigError, match="does not say which view"):
        trainer().fit(model, data())
