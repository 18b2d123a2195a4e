# SPDX-License-Identifier: MIT
"""Every method under mixed precision, accumulation, clipping, LARS, loss scaling, compilation."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from solo.errors import ConfigError
from solo.utils.lars import LARS
from sparse_ext import sparsify
from sparse_ext.config.sections import METHODS as ALL
from sparse_ext.training.fixed_masks import FixedMasks
from sparse_ext.training.run_checks import UNSUPPORTED
from tests.pruning.methods.test_all import SHARED_ONLY, Budgets, Views, counting
from tests.pruning.toys import data, toy, trainer
from tests.training.amp import ScaledFloat32

METHODS = [name for name in ALL if name != "fixed"]  # which starts from a sparse encoder

pytestmark = pytest.mark.unit

OWN = {
    "rigl": {"update_period": 1, "update_end": 1.0},
    "asp": {"tensor_core": False},
    "mcp": {"granularity": "filter", "admm_end": 0.5},
}
CLIP = 0.05


def lars(parameters):
    return LARS(parameters, 0.5, momentum=0.9, weight_decay=1e-2, eta=0.02, clip_lr=True)


def section_of(name):
    return {"name": name, "debug": True, **OWN.get(name, {})}


def half():
    """fp16 with its scaler, as on a GPU."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=10**6)
    return {"plugins": [MixedPrecision("16-mixed", device="cpu", scaler=scaler)]}


class Norms(pl.Callback):
    """Norm of the gradients that the optimizer has seen."""

    def __init__(self):
        self.seen = []

    def on_before_zero_grad(self, run, module, optimizer):
        grads = [p.grad for p in module.parameters() if p.grad is not None]
        if not grads or not run.global_step or len(self.seen) == run.global_step:
            return
        self.seen.append(float(torch.stack([g.norm() for g in grads]).norm()))


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
@pytest.mark.parametrize("name", METHODS)
def test_half_precision_with_accumulation_clipping_and_lars(name, kind):
    """Two optimizer steps per epoch of two; I1-I4 after each."""
    torch.manual_seed(0)
    model = Views(momentum=name not in SHARED_ONLY, optimizer=lars)
    callback = sparsify(model, section_of(name))
    budgets, norms = Budgets(name, counting(callback.config.granularity)), Norms()
    budgets.watch(callback)
    amp = {"precision": "bf16-mixed"} if kind == "bf16" else half()
    options = {"accumulate_grad_batches": 2, "gradient_clip_val": CLIP, "callbacks": [norms], **amp}
    trainer(epochs=2, **options).fit(model, data(batches=4))
    assert len(budgets.seen) == callback.pruner.t == 4
    assert budgets.seen[-1] == tuple(callback.pruner.finals)
    assert all(value <= CLIP * 1.01 for value in norms.seen)
    assert norms.seen or name == "rigl"  # whose update steps train nothing
    assert all(p.isfinite().all() for p in model.parameters())
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", METHODS)
def test_loss_scaling_is_invisible(name):
    """Scale 2^16 against none, bit by bit: what a method adds, it adds to unscaled gradients."""
    states = []
    for plugins in ([], [ScaledFloat32(2.0**16)]):
        torch.manual_seed(0)
        model = Views(momentum=name not in SHARED_ONLY)
        sparsify(model, section_of(name))
        trainer(epochs=2, plugins=plugins).fit(model, data(batches=2))
        states.append(model.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.parametrize("name", [n for n in METHODS if n not in ("snip", "grasp")])
def test_accumulated_batches_are_one_large_batch(name):
    """Property 8, in double precision and without batch norm: 2 x 4 samples against 8.

    SNIP and GraSP look at the first batch, which is another one.
    """
    found = []
    for size, accumulate in ((8, 1), (4, 2)):
        torch.manual_seed(0)
        model = Views(momentum=name not in SHARED_ONLY)
        model.backbone[1] = nn.Identity()
        if hasattr(model, "momentum_backbone"):
            model.momentum_backbone[1] = nn.Identity()
        loader = data(batches=16 // size, size=size)
        loader.dataset.tensors = tuple(t.double() for t in loader.dataset.tensors)
        callback = sparsify(model.double(), section_of(name))
        trainer(epochs=2, accumulate_grad_batches=accumulate).fit(model, loader)
        found.append(([e.masks.checksum() for e in callback.pruner.encoders], model.state_dict()))
    assert found[0][0] == found[1][0]
    for key, value in found[0][1].items():
        if value.dtype is torch.float64:
            torch.testing.assert_close(value, found[1][1][key])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["granet", "random", "sr_ste", "sd", "sdclr"])
def test_compiled_encoders_train_as_eager_ones_do(name):
    """Growing, fixed, living, two branches, two sets of norms; the backend changes no number."""
    states = []
    for compiled in (False, True):
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = Views(momentum=False)
        sparsify(model, section_of(name))
        if compiled:
            model.backbone.compile(backend="eager")
        trainer(epochs=2).fit(model, data(batches=3))
        states.append(model.state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.parametrize("strategy", UNSUPPORTED)
def test_strategies_that_shard_weights_are_refused(strategy):
    for fixed in (False, True):
        model = toy()
        if not fixed:
            sparsify(model, "random")
        run = trainer(callbacks=[FixedMasks()] if fixed else [])
        run.strategy.__class__ = type(strategy, (type(run.strategy),), {})
        with pytest.raises(ConfigError, match=rf"strategy={strategy}.*strategy=ddp"):
            run.fit(model, data())
