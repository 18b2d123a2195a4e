# SPDX-License-Identifier: MIT
"""LeJEPA as a method: its views, its directions, its mistakes."""

import copy

import pytest
import torch
import torch.nn.functional as F

from solo.errors import ConfigError
from solo.losses.lejepa import lejepa_loss_func
from solo.methods import METHODS
from tests.methods.helpers import tiny_batch, tiny_cfg

pytestmark = pytest.mark.unit
KWARGS = {"proj_hidden_dim": 8, "proj_output_dim": 6, "num_directions": 5}


def build(seed=3, **changes):
    torch.manual_seed(0)
    return METHODS["lejepa"](tiny_cfg("lejepa", KWARGS, seed=seed, **changes))


@pytest.mark.parametrize("small", [0, 2])
def test_loss_and_gradients_equal_the_formula(small):
    model = build(data__num_small_crops=small).double()
    reference = copy.deepcopy(model)
    indexes, views, targets = tiny_batch(n=4, small=small)
    views = [view.double() for view in views]
    loss = model.training_step([indexes, views, targets], 0)
    large = [reference(view) for view in views[:2]]
    z = torch.stack([view["z"] for view in large])
    local = [reference.multicrop_forward(view)["z"] for view in views[2:]]
    local = torch.stack(local) if local else None
    class_loss = sum(F.cross_entropy(view["logits"], targets) for view in large) / 2
    expected = lejepa_loss_func(z, local, 0.05, reference.directions()) + class_loss
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    pairs = zip(model.parameters(), reference.parameters(), strict=True)
    for got, wanted in pairs:
        torch.testing.assert_close(got.grad, wanted.grad, rtol=1e-6, atol=1e-9)


def test_directions_follow_from_the_seed_and_the_step_alone():
    model = build()
    first = model.directions()
    torch.manual_seed(123)
    assert torch.equal(model.directions(), first)
    assert not torch.equal(build(seed=4).directions(), first)
    model._trainer = type("Trainer", (), {"global_step": 1})()
    assert not torch.equal(model.directions(), first)


def test_a_vit_takes_local_crops_of_another_size():
    cfg = tiny_cfg("lejepa", KWARGS, data__num_small_crops=2)
    vit = {"img_size": 8, "patch_size": 4, "depth": 1, "dynamic_img_size": True}
    cfg.backbone = {"name": "vit_tiny", "kwargs": vit}
    loss = METHODS["lejepa"](cfg).training_step(tiny_batch(small=2), 0)
    assert loss.isfinite()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"lamb": 1.5}, "from 0 to 1"), ({"num_directions": 0}, "at least 1")],
)
def test_mistakes_are_named(kwargs, message):
    with pytest.raises(ConfigError, match=message):
        METHODS["lejepa"](tiny_cfg("lejepa", {**KWARGS, **kwargs}))
