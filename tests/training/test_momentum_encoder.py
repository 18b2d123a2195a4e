# SPDX-License-Identifier: MIT
"""The momentum encoder's update under masks (section 0.7; property 21)."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from solo.utils.momentum import MomentumUpdater
from sparse_ext.masks.masked_layers import mask_module
from sparse_ext.training.momentum_encoder import MaskedEMA, masks_respected

pytestmark = pytest.mark.unit


def layer(weight, mask, shadow):
    net = nn.Sequential(mask_module(nn.Linear(len(weight), 1, bias=False)))
    net[0].weight.data = torch.tensor([weight])
    net[0].mask.copy_(torch.tensor([mask], dtype=torch.bool))
    net[0].register_buffer("shadow", torch.tensor([shadow]))
    return net


def frozen_pair():
    """The student pruned a weight of 1; the teacher keeps it."""
    student = layer([0.0, 0.5], [0, 1], [1.0, 0.0])
    teacher = layer([1.0, 0.5], [1, 1], [0.0, 0.0])
    return student, teacher


def test_latent_average_does_not_starve_the_teacher():
    student, teacher = frozen_pair()
    ema = MaskedEMA(MomentumUpdater(0.99, 0.99), "latent")
    for _ in range(1000):
        ema.update(student, teacher)
    assert teacher[0].weight[0, 0].item() == pytest.approx(1.0, abs=1e-4)
    assert student[0].weight.tolist() == [[0.0, 0.5]]
    assert student[0].shadow.tolist() == [[1.0, 0.0]]


def test_leaky_average_starves_it():
    """tau^1000 = 4.3e-5 at 0.99."""
    student, teacher = frozen_pair()
    ema = MaskedEMA(MomentumUpdater(0.99, 0.99), "leaky")
    for _ in range(1000):
        ema.update(student, teacher)
    assert teacher[0].weight[0, 0].item() == pytest.approx(0.99**1000, rel=1e-2)


def random_pair(seed=0, n=50):
    g = torch.Generator().manual_seed(seed)
    nets = []
    for _ in range(2):
        latent = torch.randn(n, generator=g)
        mask = torch.rand(n, generator=g) < 0.5
        nets.append(layer((latent * mask).tolist(), mask.tolist(), (latent * ~mask).tolist()))
    return nets


@pytest.mark.parametrize("mode", ["latent", "leaky", "hold"])
def test_each_mode_against_numpy(mode):
    student, teacher = random_pair()
    keys = ("weight", "mask", "shadow")
    w, m, s = (getattr(student[0], k).detach().numpy().copy() for k in keys)
    tw, tm, ts = (getattr(teacher[0], k).detach().numpy().copy() for k in keys)
    updater = MomentumUpdater(0.7, 0.7)
    MaskedEMA(updater, mode).update(student, teacher)
    if mode == "latent":
        latent = 0.7 * (tw + ts) + 0.3 * (w + s)
        expected, shadow = latent * tm, latent * ~tm
    elif mode == "leaky":
        expected, shadow = (0.7 * tw + 0.3 * w) * tm, ts
    else:
        expected, shadow = np.where(m & tm, 0.7 * tw + 0.3 * w, tw), ts
    np.testing.assert_allclose(teacher[0].weight.detach().numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(teacher[0].shadow.numpy(), shadow, atol=1e-6)
    assert not teacher[0].weight[~teacher[0].mask].any()
    assert not (teacher[0].shadow * teacher[0].mask).any()
    np.testing.assert_array_equal(student[0].weight.detach().numpy(), w)
    np.testing.assert_array_equal(student[0].shadow.numpy(), s)


def test_unmasked_networks_are_averaged_as_ever():
    online, momentum = nn.Linear(3, 2), nn.Linear(3, 2)
    plain = copy.deepcopy(momentum)
    MaskedEMA(MomentumUpdater(0.9, 0.9), "latent").update(online, momentum)
    MomentumUpdater(0.9, 0.9).update(online, plain)
    assert torch.equal(momentum.weight, plain.weight)


def test_it_keeps_rate_and_schedule_of_the_updater():
    inner = MomentumUpdater(0.9, 1.0)
    ema = MaskedEMA(inner, "latent")
    assert isinstance(ema, MomentumUpdater)
    ema.update_tau(5, 10)
    assert ema.cur_tau == inner.cur_tau == pytest.approx(0.95)
    ema.cur_tau = 0.97
    assert inner.cur_tau == 0.97
    assert (ema.base_tau, ema.final_tau) == (0.9, 1.0)
    assert copy.deepcopy(ema).cur_tau == 0.97


def test_masks_return_even_after_an_error():
    student, teacher = random_pair()
    before = student[0].weight.detach().clone()

    def fail():
        with masks_respected(student, teacher, "latent"):
            assert student[0].weight.count_nonzero() == 50
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert torch.equal(student[0].weight, before)
