# SPDX-License-Identifier: MIT
"""Gated encoders inside solo's training steps."""

import copy

import pytest
import torch
from lightning.pytorch import Callback

from solo.errors import CheckpointError
from solo.losses.vicreg import vicreg_loss_func
from solo.monitoring.guards import EpochSeeder
from sparse_ext.gating.encoder import gating_of
from sparse_ext.gating.extension import GatingExtension
from sparse_ext.gating.methods.channel.losses import bound_loss, budget_loss
from tests.gating.helpers import KWARGS, method
from tests.methods.helpers import tiny_batch, tiny_loaders, tiny_trainer

pytestmark = pytest.mark.unit


class Watch(Callback):
    """What the online encoder's tape holds when a step has been taken."""

    def __init__(self):
        self.branches = []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        tape = gating_of(module.backbone).context.tape
        self.branches.append([tape[view].branch for view in sorted(tape)])


@pytest.mark.parametrize("name", KWARGS)
def test_every_method_trains_dual(name):
    model, watch = method(name), Watch()
    run = tiny_trainer(callbacks=[watch])
    run.fit(model, *tiny_loaders())
    assert watch.branches == [["gated", "dense"]] * 8
    metrics = run.callback_metrics
    assert 0 < metrics["gating/rho"] < 1
    assert metrics["gating/flops_reduction"] == pytest.approx(1 - metrics["gating/rho"].item())
    assert {f"gating/rate/layer{i}.{j}" for i in range(1, 5) for j in range(2)} <= set(metrics)
    assert "gating/val_flops_reduction" in metrics
    assert {"gating/budget_loss_epoch", "gating/bound_loss_epoch"} <= set(metrics)
    assert gating_of(model.backbone).context.tape == {}
    assert gating_of(model.backbone).context.epoch == 1
    if name == "byol":
        momentum = gating_of(model.momentum_backbone).context
        assert momentum.tape == {}
        assert momentum.epoch == 1


def test_gated_views_alone():
    model, watch = method("vicreg", "vicreg_gating"), Watch()
    tiny_trainer(callbacks=[watch], max_epochs=1).fit(model, *tiny_loaders())
    assert watch.branches == [["gated", "gated"]] * 4


@pytest.mark.parametrize(("name", "gated"), [("vicreg_dual", 1), ("vicreg_gating", 2)])
def test_the_total_loss(name, gated, monkeypatch):
    """The method's loss plus, for each gated view, L_G and L_b; nothing else."""
    model = method("vicreg", {"name": name, "budget": 0.4, "gamma": 2.0}).train()
    seen = {}
    monkeypatch.setattr(model, "log_dict", lambda values, **_: seen.update(values))
    outs = {}
    inner = type(model).LOSS

    def spy(z1, z2, **kwargs):
        outs["z"] = z1, z2
        return inner(z1, z2, **kwargs)

    monkeypatch.setattr(type(model), "LOSS", staticmethod(spy))
    context = gating_of(model.backbone).context
    context.epoch = 7
    loss = model.training_step(tiny_batch(), 0)
    passes = [p for p in context.tape.values() if p.branch == "gated"]
    assert len(passes) == gated
    budget = sum(budget_loss(p.rho, 0.4, 5.0) for p in passes)
    rates = [[u.figures["rate"] for u in p.layers.values()] for p in passes]
    bound = sum(bound_loss(r, 0.4, 7, 2.0, 0.02) for r in rates)
    own = vicreg_loss_func(*outs["z"], sim_loss_weight=25.0, var_loss_weight=25.0,
                           cov_loss_weight=1.0)  # fmt: skip
    torch.testing.assert_close(loss, own + seen["train_class_loss"] + budget + bound)
    torch.testing.assert_close(seen["gating/budget_loss"], budget)
    torch.testing.assert_close(seen["gating/bound_loss"], bound)


def test_vicreg_weights():
    """25 / 25 / 1 for invariance, variance, covariance: a unit offset costs 25 (property 46)."""
    z = torch.randn(64, 8)
    weights = {"sim_loss_weight": 25.0, "var_loss_weight": 25.0, "cov_loss_weight": 1.0}
    model = method("vicreg")
    assert {key: getattr(model, key) for key in weights} == weights
    apart = vicreg_loss_func(z, z + 1, **weights) - vicreg_loss_func(z, z, **weights)
    assert apart.item() == pytest.approx(25.0, rel=1e-4)


@pytest.mark.slow
def test_budget_is_reached():
    """Only the budget loss pulls at the gates here: rho ends near t_d from either side."""
    for budget in (0.25, 0.75):
        section = {"name": "vicreg_gating", "budget": budget, "lamb": 50.0, "gamma": 0.0}
        model = method("vicreg", section, optimizer__lr=0.02, optimizer__name="adam")
        model.sim_loss_weight = model.var_loss_weight = model.cov_loss_weight = 0.0
        run = tiny_trainer(max_epochs=20)
        run.fit(model, *tiny_loaders(n=8))
        assert run.callback_metrics["gating/rho"].item() == pytest.approx(budget, abs=0.06)


def test_gates_have_no_weight_decay():
    groups = {group["name"]: group for group in method("byol").learnable_params}
    assert groups["backbone_gates"]["weight_decay"] == 0.0
    assert "weight_decay" not in groups["backbone"]
    model = method("byol")
    names = {id(p): name for name, p in model.backbone.named_parameters()}
    groups = {group["name"]: group for group in model.learnable_params}
    gates = {names[id(p)] for p in groups["backbone_gates"]["params"]}
    assert gates == {name for name in names.values() if ".gate." in name}
    assert len(gates) + len(groups["backbone"]["params"]) == len(names)
    plain = method("byol", None)
    assert [g["name"] for g in plain.learnable_params if "backbone" in g["name"]] == ["backbone"]


def test_the_momentum_encoder_copies_gates_and_keeps_its_statistics():
    model = method("byol", momentum__base_tau=0.5, momentum__final_tau=0.5)
    before = copy.deepcopy(model)
    tiny_trainer(max_epochs=1, limit_train_batches=1).fit(model, tiny_loaders()[0])
    weight, norm = "layer1.0.gate.expand.weight", "layer1.0.gate.norm.running_mean"
    old, new = before.momentum_backbone.state_dict(), model.momentum_backbone.state_dict()
    online = model.backbone.state_dict()
    torch.testing.assert_close(new[weight], 0.5 * old[weight] + 0.5 * online[weight])
    assert not torch.equal(new[norm], old[norm])  # of its own pass, not of an average
    assert not torch.allclose(new[norm], 0.5 * old[norm] + 0.5 * online[norm])
    for name in ("bn1", "bn1_gated"):  # both branches of the momentum encoder ran
        key = f"layer1.0.{name}.running_mean"
        assert not torch.equal(new[key], old[key])


def test_warm_up_leaves_the_gates_alone():
    section = {"name": "vicreg_dual", "warmup_gate": True, "warmup_epochs": 1}
    model, watch = method("vicreg", section), Watch()
    before = copy.deepcopy(model.backbone.state_dict())
    run = tiny_trainer(max_epochs=1, callbacks=[watch])
    run.fit(model, tiny_loaders()[0])
    assert watch.branches == [["dense", "dense"]] * 4
    after = model.backbone.state_dict()
    for key, value in before.items():
        idle = "_gated" in key or ".gate." in key or key == "gating_config"
        assert torch.equal(value, after[key]) == idle, key
    assert "gating/rho" not in run.callback_metrics
    assert "gating/budget_loss" not in run.callback_metrics
    longer, watch = method("vicreg", section), Watch()
    tiny_trainer(max_epochs=2, callbacks=[watch]).fit(longer, tiny_loaders()[0])
    assert watch.branches == [["dense", "dense"]] * 4 + [["gated", "dense"]] * 4


def run_of(epochs, ckpt=None, **kwargs):
    torch.manual_seed(0)
    model = method("byol", momentum__final_tau=0.9)
    run = tiny_trainer(max_epochs=epochs, callbacks=[EpochSeeder(5)], **kwargs)
    run.fit(model, tiny_loaders()[0], ckpt_path=ckpt)
    return model, run


def test_resume_equals_a_straight_run_bit_by_bit(tmp_path):
    straight, run = run_of(2)
    _, first = run_of(1)
    first.save_checkpoint(tmp_path / "a.ckpt")
    resumed, second = run_of(2, tmp_path / "a.ckpt")
    one, other = straight.state_dict(), resumed.state_dict()
    assert all(torch.equal(one[key], other[key]) for key in one)
    for name in ("gating/rho", "gating/bound_loss", "gating/rate/layer4.1"):
        assert torch.equal(run.callback_metrics[name], second.callback_metrics[name])


def test_resuming_on_the_wrong_side(tmp_path):
    for gating, path in ((None, "dense.ckpt"), ("vicreg_dual", "gated.ckpt")):
        run = tiny_trainer(max_epochs=1)
        run.fit(method("vicreg", gating), tiny_loaders()[0])
        run.save_checkpoint(tmp_path / path)
    loader = tiny_loaders()[0]
    with pytest.raises(CheckpointError, match=r"this run has no gates.*\+gating"):
        tiny_trainer().fit(method("vicreg", None), loader, ckpt_path=tmp_path / "gated.ckpt")
    with pytest.raises(CheckpointError, match="leave out the gating section"):
        tiny_trainer().fit(method("vicreg"), loader, ckpt_path=tmp_path / "dense.ckpt")
    other = method("vicreg", {"name": "vicreg_dual", "lamb": 1.0})
    with pytest.raises(CheckpointError, match=r"gating\.lamb is 1\.0 here"):
        tiny_trainer().fit(other, loader, ckpt_path=tmp_path / "gated.ckpt")


def test_bf16_and_channels_last():
    model = method("vicreg").to(memory_format=torch.channels_last)
    run = tiny_trainer(max_epochs=1, precision="bf16-mixed")
    run.fit(model, *tiny_loaders())
    tape = []

    class Keep(Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            tape.extend(gating_of(module.backbone).context.tape.values())

    tiny_trainer(max_epochs=1, precision="bf16-mixed", callbacks=[Keep()]).fit(
        model, tiny_loaders()[0]
    )
    assert all(p.rho.dtype is torch.float32 for p in tape)
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
    assert 0 < run.callback_metrics["gating/rho"] < 1


def test_channels_last_changes_nothing():
    from tests.gating.helpers import gated_encoder

    backbone = gated_encoder().eval()
    x = torch.randn(2, 3, 16, 16)
    expected = backbone(x)
    rho = gating_of(backbone).context.tape[None].rho
    other = copy.deepcopy(backbone).to(memory_format=torch.channels_last)
    torch.testing.assert_close(other(x.to(memory_format=torch.channels_last)), expected)
    torch.testing.assert_close(gating_of(other).context.tape[None].rho, rho)


def test_masks_and_gates_together():
    """Masks stay off the gates, and both reach what they were asked for."""
    from sparse_ext.masks.masked_layers import masked_layers

    changes = {"sparse": {"name": "gmp", "final": 0.5, "update_period": 1, "debug": True}}
    model = method("vicreg", "vicreg_dual", **changes)
    run = tiny_trainer(max_epochs=2)
    run.fit(model, *tiny_loaders())
    layers = masked_layers(model.backbone)
    assert len(layers) == 19
    assert not any("gate" in name for name in layers)
    assert run.callback_metrics["sparse/online_sparsity"].item() == pytest.approx(0.5, abs=1e-4)
    assert 0 < run.callback_metrics["gating/rho"] < 1


def test_without_the_section_nothing_changes():
    model = method("vicreg", None)
    assert model.configure_callbacks() == []
    assert not any("gat" in key for key in model.state_dict())
    assert GatingExtension().losses(model, []) == {}
    assert GatingExtension().collect(model.backbone) == {}


def test_one_callback_per_module():
    model = method("vicreg")
    assert model.configure_callbacks()[0] is model.configure_callbacks()[0]
