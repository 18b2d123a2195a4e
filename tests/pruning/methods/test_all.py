# SPDX-License-Identifier: MIT
"""Every registered method, with every granularity, on a pair of encoders and on one alone."""

import math
import re

import numpy as np
import pytest
import torch
from torch import nn

from solo.errors import ConfigError
from solo.utils.views import encoding
from sparse_ext import sparsify
from sparse_ext.config.sections import METHODS as ALL
from tests.pruning.toys import Toy, data, trainer

METHODS = [name for name in ALL if name != "fixed"]  # which starts from a sparse encoder

pytestmark = pytest.mark.unit

SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("1:4", "block4-merged")]
GRANULARITIES = ["element", "2:4", "block8", "filter", *SLOW]
COUPLED = {"filter": 1, "block8": 8}  # channels in a unit

ROUND_DOWN = ("sdclr",)  # it prunes exactly ceil(q N), section 6
NM_ONLY = ("asp", "sr_ste")
PAIR_ONLY, SHARED_ONLY = ("mcp",), ("sdclr",)
LIVING = ("sdclr", "sr_ste", "mcp")


def refusal(name, granularity, momentum):
    """What the error says where a method cannot be what is asked; empty where it can."""
    nm = ":" in granularity
    if name in NM_ONLY and not nm:
        return f"{name} makes every group N:M"
    if name == "sdclr" and nm:
        return f"granularity={granularity} is not for it. Use element, block8 or filter"
    if name == "mcp" and nm:
        return "mcp prunes filters"
    if name in SHARED_ONLY and momentum:
        return "methods with one encoder"
    if name in PAIR_ONLY and not momentum:
        return "prunes the momentum encoder"
    return ""


def section_of(name, granularity, **more):
    """A method with its defaults; RigL's N:M groups need dense ones to swap with."""
    own = {"final": 0.6} if name.startswith("rigl") and ":" in granularity else {}
    own |= {"tensor_core": False} if name == "asp" else {}
    own |= {"csi": "off"} if name == "synccp" else {}  # the ramp is most of these few steps
    return {"name": name, "granularity": granularity, "debug": True, **own, **more}


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


def channels_on(masks, size):
    """Units of `size` channels between the tiny net's layers, by slices of their writers.

    Returns:
        how many are kept, and how many there are; the stem's where it is masked.
    """
    alive = []
    for name in (name for name in ("0", "3", "5") if name in masks):
        rows = masks[name].numpy().reshape(-1, size, masks[name][0].numel())
        alive += rows.any((1, 2)).tolist()
    return sum(alive), len(alive)


class Budgets:
    """Counts units after every optimizer step."""

    def __init__(self, name, count):
        self.name, self.count, self.seen = name, count, []

    def watch(self, callback):
        after_step = type(callback)._after_step
        callback._after_step = lambda *args: (
            after_step(callback, *args),
            self.look(callback.pruner),
        )

    def look(self, pruner):
        for encoder, aim in zip(pruner.encoders, pruner.aims, strict=True):
            kept, total = self.count(encoder.masks)
            if self.name in ROUND_DOWN:
                assert kept == total - math.ceil(round(aim * total, 6))
            else:
                assert kept == round((1 - aim) * total)
        self.seen.append(tuple(pruner.aims))

    def check_end(self, pruner):
        assert len(self.seen) == pruner.t == 6
        assert self.seen[-1] == tuple(pruner.finals)
        if self.name in ("synccp", "gmp"):
            assert len(set(self.seen)) > 2


def counting(granularity):
    def count(masks):
        kept = [units_on(mask, granularity) for mask in masks.values()]
        assert None not in kept
        return sum(kept), sum(all_units(mask, granularity) for mask in masks.values())

    return count


def fit(model, section, budgets):
    callback = sparsify(model, section)
    budgets.watch(callback)
    trainer(epochs=2).fit(model, data(batches=3, width=model.predictor.out_features))
    budgets.check_end(callback.pruner)
    return callback.pruner


@pytest.mark.parametrize("momentum", [True, False], ids=["pair", "shared"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("name", METHODS)
def test_budgets_are_exact_after_every_step(name, granularity, momentum):
    """Property 4 and I4 for each; what a method cannot do is an error that says so."""
    torch.manual_seed(0)
    model = Views(momentum=momentum)
    budgets = Budgets(name, counting(granularity))
    if message := refusal(name, granularity, momentum):
        with pytest.raises(ConfigError, match=re.escape(message)):
            fit(model, section_of(name, granularity), budgets)
        assert not budgets.seen
        return
    pruner = fit(model, section_of(name, granularity), budgets)
    if name in ("synccp", "gmp"):
        wanted = (pruner.config.final, pruner.config.momentum[1])
        assert budgets.seen[-1] == wanted[: 1 + momentum]


@pytest.mark.parametrize("momentum", [True, False], ids=["pair", "shared"])
@pytest.mark.parametrize("granularity", COUPLED)
@pytest.mark.parametrize("name", METHODS)
def test_budgets_of_coupled_channels_are_exact_after_every_step(name, granularity, momentum):
    """Units are channels, or eight neighbours, of the spaces between the layers."""
    torch.manual_seed(0)
    model = Views(momentum=momentum, width=16)
    size = COUPLED[granularity]
    budgets = Budgets(name, lambda masks: channels_on(masks, size))
    message = refusal(name, granularity, momentum)
    if name in LIVING or (name == "sd" and not momentum):
        message = message or "keeps them alive here: leave sparse.coupled out"
    final = {} if name in NM_ONLY else {"final": 0.5}
    section = section_of(name, granularity, coupled=True, **final)
    if message:
        with pytest.raises(ConfigError, match=re.escape(message)):
            fit(model, section, budgets)
        assert not budgets.seen
        return
    pruner = fit(model, section, budgets)
    rows = pruner.online.masks["3"].flatten(1)
    inputs = pruner.online.masks["5"].transpose(0, 1).flatten(1)
    if granularity == "filter":
        assert torch.equal(rows.any(1), rows.all(1))
    else:  # both sides of a channel go
        assert torch.equal(rows.any(1), inputs.any(1))
