# SPDX-License-Identifier: MIT
"""Every registered method, with every granularity, on a pair of encoders and on one alone."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from solo.errors import ConfigError
from solo.utils.views import encoding
from sparse_ext import sparsify
from sparse_ext.config import METHODS
from tests.sparse.toys import Toy, data, trainer

pytestmark = pytest.mark.unit

SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("1:4", "block4-merged", "filter")]
GRANULARITIES = ["element", "2:4", "block8", *SLOW]

ROUND_DOWN = ("sdclr",)  # it prunes exactly ceil(q N), section 6


class Views(Toy):
    """Says which view it encodes, as the methods of solo do; two views on one encoder alone."""

    def training_step(self, batch, batch_idx):
        x, target = batch
        with encoding(0):
            loss = nn.functional.mse_loss(self.predictor(self.backbone(x)), target)
        if hasattr(self, "momentum_backbone"):
            with encoding(1, "momentum"), torch.no_grad():
                target = self.momentum_backbone(x.flip(-1))
        with encoding(1):
            return loss + nn.functional.mse_loss(self.predictor(self.backbone(x)), target)


def units_on(mask, granularity):
    """Kept units of one layer's mask, by loops over slices; None if a unit is neither."""
    mask = mask.numpy()
    if granularity == "element":
        return int(mask.sum())
    if granularity == "filter":
        counts, full, empty = mask.reshape(len(mask), -1).sum(1), mask[0].size, 0
    elif ":" in granularity:
        empty, full = (int(number) for number in granularity.split(":"))
        pieces = np.split(mask, mask.shape[1] // full, axis=1)
        counts = np.stack([piece.sum(1) for piece in pieces])
    else:
        edge = 8 if granularity == "block8" else 4
        full, empty = edge * edge, 0
        rows = np.split(mask, mask.shape[0] // edge, axis=0)
        tiles = [t for row in rows for t in np.split(row, mask.shape[1] // edge, axis=1)]
        counts = np.stack([tile.sum((0, 1)) for tile in tiles])
        if granularity.endswith("merged"):
            full *= mask[0, 0].size
            counts = counts.reshape(len(tiles), -1).sum(1)
    if not np.isin(counts, (empty, full)).all():
        return None
    return int((counts == full).sum())


def all_units(mask, granularity):
    return units_on(mask | True, granularity)


class Budgets:
    """Counts units after every optimizer step."""

    def __init__(self, name, granularity):
        self.name, self.granularity, self.seen = name, granularity, []

    def look(self, pruner):
        for encoder, aim in zip(pruner.encoders, pruner.aims, strict=True):
            masks = encoder.masks.values()
            kept = [units_on(mask, self.granularity) for mask in masks]
            total = sum(all_units(mask, self.granularity) for mask in masks)
            assert None not in kept
            if self.name in ROUND_DOWN:
                assert sum(kept) == total - math.ceil(round(aim * total, 6))
            else:
                assert sum(kept) == round((1 - aim) * total)
        self.seen.append(tuple(pruner.aims))


@pytest.mark.parametrize("momentum", [True, False], ids=["pair", "shared"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("name", METHODS)
def test_budgets_are_exact_after_every_step(name, granularity, momentum):
    """Property 4 and I4 for each; what a method cannot do is an error that says so."""
    torch.manual_seed(0)
    model = Views(momentum=momentum)
    budgets, refused = Budgets(name, granularity), ""
    try:
        callback = sparsify(model, {"name": name, "granularity": granularity, "debug": True})
        after_step = type(callback)._after_step
        callback._after_step = lambda *args: (
            after_step(callback, *args),
            budgets.look(callback.pruner),
        )
        trainer(epochs=2).fit(model, data())
    except ConfigError as error:
        refused = str(error)
    if refused:
        assert name not in ("synccp", "gmp"), refused
        assert "granularity" in refused or "momentum encoder" in refused
        return
    assert len(budgets.seen) == callback.pruner.t == 10
    assert budgets.seen[-1] == tuple(callback.pruner.finals)
    if name in ("synccp", "gmp"):
        wanted = (callback.config.final, callback.config.momentum[1])
        assert budgets.seen[-1] == wanted[: 1 + momentum]
        assert len(set(budgets.seen)) > 2
