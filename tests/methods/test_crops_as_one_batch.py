# SPDX-License-Identifier: MIT
"""Crops of one size are encoded as one batch where that is the same."""

import copy

import pytest
import torch

from solo import extensions
from solo.methods import METHODS
from tests.methods.helpers import tiny_batch, tiny_cfg
from tests.methods.vit_models import HEAD, LEJEPA, VIT, batch_of, build

pytestmark = pytest.mark.unit


class Passes(list):
    """Sizes of the batches that an encoder sees."""

    def __init__(self, encoder):
        super().__init__()
        encoder.register_forward_pre_hook(lambda _, inputs: self.append(tuple(inputs[0].shape)))


def test_small_crops_of_one_size_are_encoded_as_one_batch_with_the_same_loss():
    for name in ("lejepa", "dino"):
        kwargs = {"local_crops": True} if name == "dino" else {"num_directions": 8}
        model = build(name, small=3, kwargs=kwargs) if name == "dino" else _lejepa()
        apart = copy.deepcopy(model)
        apart._as_one_batch = lambda encoder, *methods: False
        batch, passes, alone = batch_of(small=3), Passes(model.backbone), Passes(apart.backbone)
        joint = model.training_step(batch, 0)
        assert passes == [(8, 3, 16, 16), (12, 3, 8, 8)]
        one_by_one = apart.training_step(batch, 0)
        assert alone == [(4, 3, 16, 16)] * 2 + [(4, 3, 8, 8)] * 3
        torch.testing.assert_close(joint, one_by_one)
        joint.backward()
        one_by_one.backward()
        for p, q in zip(model.parameters(), apart.parameters(), strict=True):
            if p.grad is not None:
                torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)


def _lejepa():
    cfg = tiny_cfg("lejepa", LEJEPA)
    cfg.data.num_small_crops = 3
    cfg.backbone = {"name": "vit_tiny", "kwargs": VIT}
    return METHODS["lejepa"](cfg)


def test_batch_norm_keeps_the_views_apart():
    cfg = tiny_cfg("simclr", {**HEAD, "temperature": 0.2}, data__num_small_crops=2)
    del cfg.method_kwargs.num_prototypes
    model = METHODS["simclr"](cfg)
    passes = Passes(model.backbone)
    model.training_step(tiny_batch(small=2), 0)
    assert passes == [(4, 3, 8, 8)] * 2 + [(4, 3, 4, 4)] * 2


def test_the_momentum_encoder_sees_the_large_crops_as_one_batch_too():
    model = build("dino", small=2, kwargs={"local_crops": True})
    passes = Passes(model.momentum_backbone)
    model.training_step(batch_of(small=2), 0)
    assert passes == [(8, 3, 16, 16)]
    model = build("ibot", small=2)  # its passes look at which view it is
    passes = Passes(model.momentum_backbone), Passes(model.backbone)
    model.training_step(batch_of(small=2), 0)
    assert passes[0] == [(4, 3, 16, 16)] * 2
    assert passes[1] == [(4, 3, 16, 16)] * 2 + [(8, 3, 8, 8)]


def test_without_small_crops_every_view_is_encoded_by_itself():
    model = build("dino")
    passes = Passes(model.backbone)
    model.training_step(batch_of(), 0)
    assert passes == [(4, 3, 16, 16)] * 2


def test_small_crops_of_two_sizes_are_two_batches():
    model = build("dino", small=4, kwargs={"local_crops": True})
    batch = batch_of(small=4)
    batch[1][4:] = [torch.randn(4, 3, 12, 12) for _ in range(2)]
    passes = Passes(model.backbone)
    assert model.training_step(batch, 0).isfinite()
    assert passes[1:] == [(8, 3, 8, 8), (8, 3, 12, 12)]


def test_an_extension_that_tells_views_apart_gets_them_one_by_one(monkeypatch):
    class PerView(extensions.Extension):
        def tells_views_apart(self, backbone):
            return True

    monkeypatch.setitem(extensions._EXTENSIONS, "PerView", PerView())
    model = build("dino", small=3, kwargs={"local_crops": True})
    passes = Passes(model.backbone)
    model.training_step(batch_of(small=3), 0)
    assert passes[2:] == [(4, 3, 8, 8)] * 3
