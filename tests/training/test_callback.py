# SPDX-License-Identifier: MIT
"""The order contract inside real Lightning runs (properties 3-5, 12 at run level)."""

import copy

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from solo.utils.lars import LARS
from sparse_ext import sparsify
from sparse_ext.config.sections import build
from sparse_ext.masks.encoder import Encoder, states_of
from sparse_ext.masks.masking import patch
from tests.pruning.toys import Toy, data, toy, trainer
from tests.training.runs import FAST, OPTIMIZERS, fit

pytestmark = pytest.mark.unit


class CheckEveryStep(pl.Callback):
    """I1-I3 after every optimizer step, on top of what `debug` looks at."""

    def __init__(self, callback):
        self.callback, self.steps = callback, 0

    def on_train_batch_end(self, trainer, module, *_):
        for encoder in self.callback._encoders:
            for layer in encoder.layers.values():
                off = ~layer.mask
                assert not layer.weight.detach()[off].any()
                assert not layer.shadow[layer.mask].any()
                states = states_of(trainer.optimizers[0], layer.weight)
                assert not any(state[off].any() for state in states)
        self.steps += 1


@pytest.mark.parametrize(
    ("name", "granularity"),
    [
        *((name, "element") for name in OPTIMIZERS),
        ("lars", "2:4"),
        ("adamw", "block8"),
        ("sgd", "1:4"),
    ],
)
def test_pruned_weights_and_their_state_stay_zero(name, granularity):
    """Property 4: momentum does not revive, weight decay does not leak; budgets are exact."""
    model = toy(optimizer=OPTIMIZERS[name])
    callback = sparsify(model, {**FAST, "granularity": granularity, "debug": True})
    check = CheckEveryStep(callback)
    run = trainer(epochs=5, gradient_clip_val=0.5, callbacks=[check])
    run.fit(model, data(batches=10, size=2))
    assert check.steps == callback.pruner.t == 50
    pruner = callback.pruner
    units = [pruner.units.count(encoder.masks) for encoder in pruner.encoders]
    ends = (1.0, 0.7) if ":" in granularity else (0.8, 0.5)
    assert units == [round((1 - end) * pruner.units.total) for end in ends]


def test_lars_on_a_masked_layer_is_lars_on_its_active_weights():
    """Property 5: norms see only what is kept, so the dense sub-vector problem is the same one."""
    net = patch(nn.Sequential(nn.Conv2d(1, 1, 1), nn.Linear(20, 3, bias=False)), build("gmp"))
    layer = net[1]
    layer.mask.copy_(torch.rand(3, 20) < 0.4)
    layer.apply_mask()
    active = layer.weight.detach()[layer.mask].clone().view(1, -1).requires_grad_()
    settings = {"lr": 0.3, "momentum": 0.9, "weight_decay": 1e-2, "eta": 0.05}
    whole, part = LARS([layer.weight], **settings), LARS([active], **settings)
    encoder = Encoder(net)
    for step in range(5):
        g = torch.Generator().manual_seed(step)
        gradient = torch.randn(3, 20, generator=g)
        layer.weight.grad, active.grad = gradient.clone(), gradient[layer.mask].view(1, -1).clone()
        encoder.mask_gradients()
        whole.step()
        encoder.project(whole)
        part.step()
        torch.testing.assert_close(layer.weight[layer.mask].view(1, -1), active, atol=1e-6, rtol=0)


class Spy(pl.Callback):
    """Gradients as the method sees them (first) and as clipping sees them (after us)."""

    def __init__(self):
        self.seen = []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.seen.append(
            {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
        )


def test_the_gradient_is_dense_for_the_score_and_masked_for_the_rest():
    """Property 12: with stored zeros autograd gives pruned weights a gradient."""
    model, spy = toy(), Spy()
    sparsify(model, {"name": "synccp", "final": 0.3, "score_momentum": 0.0})
    trainer(epochs=20, max_steps=1, callbacks=[spy]).fit(model, data())
    layer = model.backbone[3]
    masked, off = spy.seen[0]["backbone.3.weight"], ~layer.mask
    assert off.any()
    assert (layer.score[off] != 0).float().mean() > 0.99
    assert torch.equal(layer.score[layer.mask], masked[layer.mask].abs())
    assert not masked[off].any()


def test_dense_gradients_equal_finite_differences():
    layers = [nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 3), nn.Tanh()]
    net = patch(nn.Sequential(*layers).double(), build("gmp"))
    layer = net[2]
    layer.mask.copy_(torch.rand(layer.mask.shape) < 0.3)
    layer.apply_mask()
    x = torch.randn(4, 3, 8, 8, dtype=torch.double)
    net(x).square().sum().backward()
    off = (~layer.mask).nonzero()
    assert (layer.weight.grad[~layer.mask] != 0).float().mean() >= 0.99
    for index in off[:: len(off) // 10]:
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                layer.weight[tuple(index)] = step
                values.append(net(x).square().sum().item())
                layer.weight[tuple(index)] = 0
        slope = (values[0] - values[1]) / 2e-5
        assert layer.weight.grad[tuple(index)].item() == pytest.approx(slope, rel=1e-3, abs=1e-6)


def test_clipping_sees_active_weights_only():
    """Huge gradients of pruned weights do not shrink the others."""
    updates = []
    for poison in (0.0, 1e6):
        model = toy()
        callback = sparsify(model, {"name": "synccp", "final": 0.3})

        class Poison(pl.Callback):
            def on_after_backward(self, trainer, module, poison=poison):
                layer = module.backbone[3]
                layer.weight.grad.add_(poison * ~layer.mask)

        trainer(gradient_clip_val=0.1, callbacks=[Poison()]).fit(model, data())
        assert callback.pruner.ramp is None
        updates.append(model.backbone[3].weight.detach().clone())
    assert torch.equal(*updates)


def test_an_update_of_the_momentum_encoder_by_hand_is_respected():
    """The module's own loop in `on_train_batch_end` gives what its MomentumUpdater would."""
    callbacks = [fit(toy(updater=updater)) for updater in (True, False)]
    first, second = (callback.pruner.momentum for callback in callbacks)
    assert first.masks.checksum() == second.masks.checksum()
    for name, value in first.latents.items():
        torch.testing.assert_close(second.latents[name], value)
    second.check()


def test_masks_change_in_place_under_compile():
    """No recompilation: parameters and buffers keep their identity (eager backend counts)."""
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    model = toy(momentum=False)
    identity = [id(p) for p in model.backbone.parameters()]
    model.backbone = torch.compile(model.backbone, backend=counter)
    callback = fit(model, epochs=4)
    assert callback.pruner.kept == [round(0.2 * callback.pruner.online.masks.n)]
    assert [id(p) for p in model.backbone._orig_mod.parameters()] == identity
    assert list(callback.pruner.online.layers) == ["3", "5", "9"]
    assert counter.frame_count == 1


def test_a_copy_of_the_model_lives_on_its_own():
    model = toy()
    callback = fit(model, epochs=1)
    twin = copy.deepcopy(model)
    assert twin._pruning is not callback
    before = model.backbone[3].weight.detach().clone()
    trainer(epochs=2).fit(twin, data())
    assert twin._pruning.pruner.online.layers["3"] is twin.backbone[3]
    assert torch.equal(model.backbone[3].weight, before)
    assert callback.pruner.t == 5


def test_the_callback_acts_once_whether_or_not_the_trainer_has_it():
    steps = []
    for passed in (False, True):
        model = toy()
        callback = sparsify(model, FAST)
        trainer(epochs=1, callbacks=[callback] if passed else []).fit(model, data())
        steps.append((callback.pruner.t, callback.pruner.online.masks.checksum()))
    assert steps[0] == steps[1]
    assert steps[0][0] == 5


def test_own_callbacks_of_the_module_stay():
    class Own(Toy):
        def configure_callbacks(self):
            return Spy()

    model = Own()
    callback = sparsify(model, FAST)
    assert [type(c).__name__ for c in model.configure_callbacks()] == ["Spy", "PruningCallback"]
    assert model.configure_callbacks()[1] is callback
