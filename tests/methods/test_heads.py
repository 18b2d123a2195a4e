# SPDX-License-Identifier: MIT
"""Heads: what each reads, what it returns, and how its momentum copy does the same."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from solo.methods.base import BaseMethod, BaseMomentumMethod
from solo.methods.heads import Head, apply_heads, momentum_pair
from tests.methods.helpers import tiny_cfg

pytestmark = pytest.mark.unit


def _through(heads, **modules):
    feats = torch.arange(6.0).view(2, 3) + 1
    return feats, apply_heads(feats, heads, lambda name: modules[name])


def double(x):
    return 2 * x


def test_a_head_reads_what_the_head_before_computed_not_its_unit_rows():
    heads = {"a": Head("z", unit=True), "b": Head("p", of="z"), "c": Head("q")}
    feats, out = _through(heads, a=double, b=double, c=double)
    torch.testing.assert_close(out["z"], 2 * feats / (2 * feats).norm(dim=1, keepdim=True))
    assert torch.equal(out["p"], 4 * feats)
    assert torch.equal(out["q"], 2 * feats)


def test_a_head_reads_unit_rows_when_it_asks_for_them():
    feats, out = _through(
        {"a": Head("z", unit=True), "b": Head("p", of="z", of_unit=True)}, a=double, b=double
    )
    torch.testing.assert_close(out["p"], 2 * feats / feats.norm(dim=1, keepdim=True))


def test_a_head_without_output_is_left_to_the_method():
    assert set(_through({"a": Head(), "b": Head("z")}, b=double)[1]) == {"z"}


class OwnForward(BaseMethod):
    HEADS = {"projector": {"lr": 0.7}}

    def __init__(self, cfg):
        super().__init__(cfg)
        self.projector = nn.Linear(self.features_dim, 3)


def test_a_mapping_stands_for_a_head_that_the_method_applies_itself():
    model = OwnForward(tiny_cfg("base"))
    assert set(model(torch.randn(2, 3, 8, 8))) == {"logits", "feats"}
    assert model.learnable_params[-1]["lr"] == 0.7


class Momentum(BaseMomentumMethod):
    HEADS = {
        "projector": Head("z", momentum_output="k", momentum_unit=True),
        "predictor": Head("p", of="z"),
        "frozen": Head("f", trained=False),
    }

    def __init__(self, cfg):
        super().__init__(cfg)
        self.projector, self.momentum_projector = momentum_pair(
            lambda: nn.Linear(self.features_dim, 4)
        )
        self.predictor, self.frozen = nn.Linear(4, 4), nn.Linear(self.features_dim, 2)


@pytest.mark.parametrize("small", [False, True])
def test_momentum_copies_and_small_crops(small):
    model = Momentum(tiny_cfg("base")).eval()
    model.HEADS_ON_SMALL_CROPS = small
    x = torch.randn(2, 3, 8, 8)
    out = model(x)
    assert set(out) == {"logits", "feats", "z", "p", "f"}
    torch.testing.assert_close(out["p"], model.predictor(model.projector(out["feats"])))
    key = model.momentum_forward(x)
    assert set(key) == {"feats", "k"}
    assert not key["k"].requires_grad
    torch.testing.assert_close(key["k"], F.normalize(model.momentum_projector(key["feats"])))
    assert set(model.multicrop_forward(x)) == ({"feats", "z", "p", "f"} if small else {"feats"})
    names = [group["name"] for group in model.learnable_params]
    assert names == ["backbone", "classifier", "projector", "predictor"]
