# SPDX-License-Identifier: MIT
"""The order contract inside real Lightning runs (properties 3-5, 8-10, 12 at run level)."""

import copy
from contextlib import nullcontext

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from solo.errors import ConfigError
from solo.utils.lars import LARS
from sparse_ext import sparsify
from sparse_ext.config import build
from sparse_ext.encoder import Encoder, patch, states_of
from tests.sparse.toys import Toy, data, tiny_net, toy, trainer

pytestmark = pytest.mark.unit

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=1e-2, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, 1e-2, weight_decay=1e-2, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=1e-2),
    "lars": lambda p: LARS(p, 0.5, momentum=0.9, weight_decay=1e-2, eta=0.02, clip_lr=True),
}
FAST = {"name": "synccp", "csi": "off", "update_period": 2}
UNITS = ["element", "2:4", "block8"]


def fit(model, loader=None, section=None, **kwargs):
    """Train; returns the callback."""
    callback = sparsify(model, section or FAST)
    run = trainer(**kwargs)
    run.fit(model, loader or data())
    callback.trainer_of_test = run
    return callback


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


@pytest.mark.parametrize("granularity", UNITS)
def test_accumulation_counts_optimizer_steps(granularity):
    """Property 8: 4 x batch 4 against batch 16."""
    kept, masks = [], []
    for size, accumulate in ((16, 1), (4, 4)):
        model = toy(momentum=False).double()
        model.backbone[1] = nn.Identity()  # batch norm would see other batches
        loader = data(batches=80 // size, size=size)
        loader.dataset.tensors = tuple(t.double() for t in loader.dataset.tensors)
        section = {**FAST, "granularity": granularity}
        callback = fit(model, loader, section, epochs=2, accumulate_grad_batches=accumulate)
        kept.append((callback.pruner.t, callback.pruner.ramp))
        masks.append(callback.pruner.online.masks.checksum())
    assert kept[0] == kept[1]
    assert kept[0][0] == 10
    assert masks[0] == masks[1]


@pytest.mark.parametrize("granularity", UNITS)
def test_channels_last_gives_equal_masks(granularity):
    """Property 9, with initial masks, ties and regrowth."""
    sums = []
    for layout in (torch.contiguous_format, torch.channels_last):
        model = toy().double().to(memory_format=layout)
        loader = data()
        loader.dataset.tensors = tuple(t.double() for t in loader.dataset.tensors)
        callback = fit(model, loader, {**FAST, "granularity": granularity, "debug": True})
        assert model.backbone[5].mask.is_contiguous(memory_format=layout)
        assert model.backbone[5].shadow.is_contiguous(memory_format=layout)
        sums.append([encoder.masks.checksum() for encoder in callback.pruner.encoders])
    assert sums[0] == sums[1]


class ScaledFloat32(MixedPrecision):
    """The loss scaling of fp16 without its rounding."""

    def __init__(self, scale):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10**6)
        super().__init__("16-mixed", device="cpu", scaler=scaler)

    def forward_context(self):
        return nullcontext()


@pytest.mark.parametrize("granularity", UNITS)
def test_loss_scaling_is_invisible(granularity):
    """Property 10: scale 2^16 against no scaling, bit by bit."""
    results = []
    for plugins in ([], [ScaledFloat32(2.0**16)]):
        section = {**FAST, "granularity": granularity, "debug": True}
        callback = fit(toy(), section=section, plugins=plugins)
        results.append(
            (
                callback.pruner.online.masks.checksum(),
                [s.clone() for s in callback.pruner.online.scores.values()],
            )
        )
    assert results[0][0] == results[1][0]
    assert all(torch.equal(*pair) for pair in zip(results[0][1], results[1][1], strict=True))


class InfiniteOnce(pl.Callback):
    """An overflow at batch 3, as fp16 has it; records scores and t around it."""

    def __init__(self, callback):
        self.callback, self.seen = callback, {}

    def on_after_backward(self, trainer, module):
        if trainer.global_step == 3:
            module.predictor.weight.grad[0, 0] = float("inf")

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        pruner = self.callback.pruner
        scores = [s.clone() for s in pruner.online.scores.values()]
        self.seen[trainer.global_step] = (pruner.t, scores, pruner.online.masks.checksum())


def test_a_skipped_step_does_not_count():
    model = toy()
    callback = sparsify(model, {**FAST, "update_period": 1})
    spy = InfiniteOnce(callback)
    trainer(epochs=2, plugins=[ScaledFloat32(2.0**10)], callbacks=[spy]).fit(model, data())
    assert [spy.seen[step][0] for step in (3, 4, 5)] == [3, 3, 4]
    assert all(torch.equal(*pair) for pair in zip(spy.seen[3][1], spy.seen[4][1], strict=True))
    assert spy.seen[3][2] == spy.seen[4][2] != spy.seen[5][2]
    assert callback.pruner.t == 9


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_other_precisions(precision):
    callback = fit(toy(), section={**FAST, "debug": True}, precision=precision, epochs=2)
    assert callback.pruner.kept[0] == round(0.2 * callback.pruner.online.masks.n)
    wide = torch.float64 if precision == "64-true" else torch.float32
    assert {score.dtype for score in callback.pruner.online.scores.values()} == {wide}


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


def test_figures_are_logged_under_their_names():
    run = fit(toy(), epochs=4).trainer_of_test
    figures = {k.removeprefix("sparse/"): v.item() for k, v in run.callback_metrics.items()}
    expected = {"online_sparsity": 0.8, "momentum_sparsity": 0.5, "gap": 0.3, "triggered": 1.0}
    for name, value in expected.items():
        assert figures[name] == pytest.approx(value, abs=1e-3)
    assert {"mask_flips", "drop_fraction", "layer_density/3", "layer_density/9"} <= set(figures)
    run = fit(toy(), section="synccp", epochs=4, max_epochs=2).trainer_of_test
    assert {"sparse/inconsistency", "sparse/excess"} <= set(run.callback_metrics)


class Rows(Logger):
    """Keeps what is logged."""

    name = version = "rows"

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, *_):
        pass


def test_every_mask_update_is_logged():
    """Eq. 7 per layer at each update, though Lightning logs every 50th step only."""
    rows = Rows()
    callback = fit(toy(), epochs=4, logger=rows)
    seen = {t: row for t, row in rows.rows if "sparse/oscillation" in row}
    assert list(seen) == list(range(0, 20, 2))
    sizes = callback.pruner.online.sizes
    for row in seen.values():
        layers = {name: row[f"sparse/layer_oscillation/{name}"] for name in sizes}
        mean = sum(layers[name] * n for name, n in sizes.items()) / sum(sizes.values())
        assert row["sparse/oscillation"] == pytest.approx(mean)
    assert max(row["sparse/oscillation"] for row in seen.values()) > 0.05


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


class TwoOptimizers(Toy):
    def configure_optimizers(self):
        return [torch.optim.SGD(self.parameters(), 0.1), torch.optim.SGD(self.parameters(), 0.1)]


def test_ways_of_training_that_masks_cannot_follow():
    model = toy()
    sparsify(model, FAST)
    model.automatic_optimization = False
    with pytest.raises(ConfigError, match="optimizes by hand"):
        trainer().fit(model, data())
    model = TwoOptimizers()
    sparsify(model, FAST)
    with pytest.raises(Exception, match=r"one optimizer|multiple optimizers"):
        trainer().fit(model, data())
    model = toy()
    sparsify(model, FAST)
    run = trainer()
    run.strategy.__class__ = type("FSDPStrategy", (type(run.strategy),), {})
    with pytest.raises(ConfigError, match="strategy=FSDPStrategy"):
        run.fit(model, data())
    model = toy(optimizer=lambda p: torch.optim.Adam(p, fused=True))
    sparsify(model, FAST)
    with pytest.raises(ConfigError, match="fused"):
        trainer(plugins=[ScaledFloat32(1.0)]).fit(model, data())
    model = toy()
    sparsify(model, FAST)
    with pytest.raises(ConfigError, match="max_epochs or max_steps"):
        trainer(epochs=-1).fit(model, data())


def test_modules_that_do_not_fit():
    with pytest.raises(ConfigError, match="no attribute 'backbone'"):
        sparsify(pl.LightningModule(), FAST)
    model = toy(momentum=False)
    sparsify(model, {**FAST, "momentum_initial": 0.0})
    with pytest.raises(ConfigError, match="momentum encoder; this one has none"):
        trainer().fit(model, data())
    for option in (
        {"gap": 0.2},
        {"offline_regrow": True},
        {"ema_mode": "hold"},
        {"sparser": "offline", "initial": 0.0, "final": 0.5},
    ):
        model = toy(momentum=False)
        sparsify(model, {**FAST, **option})
        with pytest.raises(ConfigError, match=rf"sparse\.{next(iter(option))}=.*Leave it out"):
            trainer().fit(model, data())
    fit(toy(momentum=False), section={**FAST, "gap": 0.0, "initial": 0.0})
    model = toy()
    model.momentum_backbone = tiny_net(4)
    sparsify(model, FAST)
    with pytest.raises(ConfigError, match="different prunable layers"):
        trainer().fit(model, data())
    model = toy()
    model.backbone = nn.Sequential(nn.Conv2d(3, 8, 1))
    with pytest.raises(ConfigError, match="nothing to prune"):
        sparsify(model, FAST)
    with pytest.raises(ConfigError, match=r"lower sparse\.update_period"):
        fit(toy(), section={**FAST, "update_period": 100})


class StopAfter(pl.Callback):
    def __init__(self, steps):
        self.steps = steps

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.global_step >= self.steps


def test_a_run_that_misses_its_target_says_so(caplog):
    with caplog.at_level("WARNING", "sparse_ext"):
        fit(toy(), section="synccp", callbacks=[StopAfter(2)])
    assert "ended at sparsity 0.3001, not at the final 0.8: it stopped after 2 steps" in caplog.text
    caplog.clear()
    with caplog.at_level("WARNING", "sparse_ext"):
        fit(toy(), section=FAST)
    assert "ended at" not in caplog.text
