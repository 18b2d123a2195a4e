# SPDX-License-Identifier: MIT
"""Accumulation, memory formats, loss scaling and precisions (properties 8-10 at run level)."""

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from sparse_ext import sparsify
from tests.pruning.toys import data, toy, trainer
from tests.training.amp import ScaledFloat32
from tests.training.runs import FAST, UNITS, fit

pytestmark = pytest.mark.unit


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
