# SPDX-License-Identifier: MIT
"""Small crops: every method's loss uses them, or the method refuses them by name."""

import copy

import pytest
import torch

from solo.errors import ConfigError
from solo.methods import METHODS
from tests.methods.helpers import tiny_batch, tiny_cfg
from tests.methods.vit_models import VIT

USE = {"byol", "simclr", "supcon", "swav", "deepclusterv2", "dino", "lejepa", "ibot", "dinov2"}
# the last two ask for a teacher and for other labels before
OTHERS = {*METHODS} - USE - {"base", "linear", "wmse", "distill", "multilabel"}
OF_PATCHES = {"ibot", "dinov2", "mae", "ijepa"}


def built(name):
    """The method with two small crops, all its required keys at 8 or 0.2."""
    kwargs = {
        key: 8 if kind is int else 0.2
        for key, kind in METHODS[name].KWARGS.items()
        if isinstance(kind, type)
    }
    kwargs |= {"whitening_size": 2} if name == "wmse" else {}
    cfg = tiny_cfg(name, kwargs, data__num_small_crops=2)
    if name in OF_PATCHES:
        vit = {key: value for key, value in VIT.items() if name != "mae" or "dynamic" not in key}
        cfg.backbone = {"name": "vit_tiny", "kwargs": vit}
    torch.manual_seed(0)
    return METHODS[name](cfg)


def loss_of(model, batch):
    model = copy.deepcopy(model)
    if model.cfg.method == "swav":
        model.on_train_start()
    if model.cfg.method == "deepclusterv2":
        model.assignments = torch.zeros(3, 10, dtype=torch.long)
        model.local_memory_index = torch.full((12,), -1)
        model.local_memory_embeddings = torch.zeros(2, 12, 8)
    torch.manual_seed(0)
    out = model.training_step(batch, 0)
    return out.item()


@pytest.mark.parametrize("name", sorted(USE))
def test_the_loss_uses_them(name):
    indexes, views, targets = tiny_batch(small=2, size=16)
    changed = [*views[:2], *(torch.randn_like(view) for view in views[2:])]
    model = built(name)
    same = loss_of(model, [indexes, list(views), targets])
    assert same == loss_of(model, [indexes, views, targets])
    assert same != pytest.approx(loss_of(model, [indexes, changed, targets]), rel=1e-6)


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_or_they_are_refused(name):
    with pytest.raises(ConfigError, match=f"{name} has no use for small crops: .* makes 2"):
        built(name)


def test_a_published_recipe_that_makes_some_is_warned():
    with pytest.warns(UserWarning, match=r"wmse's loss has no use for the 2 small crops"):
        built("wmse")


def test_a_method_from_elsewhere_may_say_that_it_uses_them():
    class Own(METHODS["simsiam"]):
        SMALL_CROPS = True

    kwargs = {"proj_hidden_dim": 8, "proj_output_dim": 8, "pred_hidden_dim": 8}
    assert Own(tiny_cfg("own", kwargs, data__num_small_crops=2)).multicrop
