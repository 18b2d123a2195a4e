# SPDX-License-Identifier: MIT
"""What makes a step fast changes its numbers by rounding alone."""

import pytest
import torch

from solo.methods import METHODS
from solo.utils.momentum import MomentumUpdater
from tests.methods.helpers import tiny_cfg, tiny_loaders, tiny_trainer

pytestmark = pytest.mark.unit
SMALL = {"proj_hidden_dim": 8, "proj_output_dim": 4}
METHOD_KWARGS = {
    "simclr": {**SMALL, "temperature": 0.2},
    "byol": {**SMALL, "pred_hidden_dim": 8},
    "barlow_twins": {**SMALL, "lamb": 0.1, "scale_loss": 0.1},
    "vicreg": {
        **SMALL, "sim_loss_weight": 25.0, "var_loss_weight": 25.0, "cov_loss_weight": 1.0,
    },
}  # fmt: skip
LARS = {"momentum": 0.9, "eta": 0.02, "clip_lr": True, "exclude_bias_n_norm": True}


class Losses:
    """Mixed into a method: keeps the loss of every step."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.losses = [*getattr(self, "losses", []), float(loss)]
        return loss


def trained(method, steps=3, channels_last=False, n=8, trainer=None, **changes):
    """A method after some steps from the same weights on the same batches."""
    torch.manual_seed(0)
    cfg = tiny_cfg(method, METHOD_KWARGS[method], **changes)
    model = type(method, (Losses, METHODS[method]), {})(cfg)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    options = {"max_epochs": 1, "limit_val_batches": 0, **(trainer or {})}
    tiny_trainer(**options).fit(model, tiny_loaders(steps=steps, n=n)[0])
    return model


def equal(a, b, rtol=1e-3, atol=1e-4):
    assert a.losses == pytest.approx(b.losses, rel=rtol)
    for name, value in a.state_dict().items():
        other = b.state_dict()[name]
        torch.testing.assert_close(other, value, rtol=rtol, atol=atol, msg=name)


@pytest.mark.parametrize("method", METHOD_KWARGS)
def test_channels_last(method):
    fast = trained(method, channels_last=True)
    weight = next(p for p in fast.backbone.parameters() if p.ndim == 4 and p.shape[-1] > 1)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    equal(trained(method), fast)


@pytest.mark.parametrize("method", METHOD_KWARGS)
def test_bf16_loss_is_close_to_fp32(method):
    plain = trained(method, steps=2, optimizer__lr=0.01)
    half = trained(method, steps=2, optimizer__lr=0.01, trainer={"precision": "bf16-mixed"})
    assert half.losses != plain.losses
    assert half.losses == pytest.approx(plain.losses, rel=0.04)
    assert all(p.dtype == torch.float32 for p in half.parameters())


@pytest.mark.parametrize(
    ("name", "fast", "plain"),
    [
        ("sgd", {"foreach": True}, {"foreach": False}),
        ("sgd", {"fused": True}, {"foreach": False}),
        ("adamw", {"foreach": True}, {"foreach": False}),
    ],
)
def test_optimizers_of_few_calls_equal_the_loop(name, fast, plain):
    changes = {"optimizer__name": name, "optimizer__lr": 0.01}
    models = [trained("byol", optimizer__kwargs=kwargs, **changes) for kwargs in (plain, fast)]
    equal(*models, rtol=1e-4, atol=1e-5)


def lars_step(parameter, buffer, lr, momentum, weight_decay):
    """One tensor's step by the paper (You et al., 2017), with clipped rates, for weights alone."""
    grad, weight = parameter.grad, parameter.data
    if weight.ndim > 1:
        decayed = grad + weight_decay * weight
        trust = LARS["eta"] * weight.norm() / (grad.norm() + weight_decay * weight.norm() + 1e-8)
        grad = decayed * min(float(trust / lr), 1.0)
    buffer.mul_(momentum).add_(grad)
    weight.sub_(lr * buffer)


def test_lars_of_a_whole_network_equals_the_loop():
    changes = {"optimizer__name": "lars", "optimizer__kwargs": LARS, "optimizer__lr": 0.3}
    torch.manual_seed(0)
    model = METHODS["simclr"](tiny_cfg("simclr", METHOD_KWARGS["simclr"], **changes))
    optimizer = model.configure_optimizers()
    twin = [p.detach().clone() for p in model.backbone.parameters()]
    buffers = [torch.zeros_like(p) for p in twin]
    group = next(g for g in optimizer.param_groups if g["name"] == "backbone")
    assert len(group["params"]) == len(twin)
    assert group["weight_decay"] > 0
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        for p, copy, buffer in zip(group["params"], twin, buffers, strict=True):
            p.grad = copy.grad = torch.randn(p.shape, generator=generator) * 0.01
            lars_step(copy, buffer, group["lr"], group["momentum"], group["weight_decay"])
        optimizer.step()
    for p, copy in zip(group["params"], twin, strict=True):
        torch.testing.assert_close(p.data, copy, rtol=1e-4, atol=1e-6)


def test_momentum_encoder_of_one_call_equals_the_loop():
    torch.manual_seed(0)
    online, momentum = (
        METHODS["byol"](tiny_cfg("byol", METHOD_KWARGS["byol"])).backbone for _ in "ab"
    )
    twin = [p.detach().clone() for p in momentum.parameters()]
    updater = MomentumUpdater(0.9, 1.0)
    for step in range(3):
        for old, new in zip(twin, online.parameters(), strict=True):
            old.mul_(updater.cur_tau).add_(new.detach(), alpha=1 - updater.cur_tau)
        updater.update(online, momentum)
        updater.update_tau(step, 10)
    for p, copy in zip(momentum.parameters(), twin, strict=True):
        torch.testing.assert_close(p.data, copy, rtol=1e-5, atol=1e-7)
