# SPDX-License-Identifier: MIT
"""The momentum update against its closed form."""

import math

import pytest
import torch
from torch import nn

from solo.errors import ConfigError
from solo.utils.momentum import MomentumUpdater, initialize_momentum_params

pytestmark = pytest.mark.unit


def test_initialisation_copies_parameters_not_buffers_and_freezes():
    online, momentum = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    nn.init.normal_(online.weight)
    online.running_mean.fill_(5)
    initialize_momentum_params(online, momentum)
    assert torch.equal(online.weight, momentum.weight)
    assert online.weight.data_ptr() != momentum.weight.data_ptr()
    assert not any(p.requires_grad for p in momentum.parameters())
    assert all(p.requires_grad for p in online.parameters())
    assert torch.equal(momentum.running_mean, torch.zeros(3))


def test_frozen_online_weights_are_approached_geometrically():
    online, momentum = nn.Linear(3, 4), nn.Linear(3, 4)
    start, target = momentum.weight.detach().clone(), online.weight.detach().clone()
    updater = MomentumUpdater(0.9, 1.0)
    for _ in range(5):
        updater.update(online, momentum)
    torch.testing.assert_close(momentum.weight, target + 0.9**5 * (start - target))
    assert torch.equal(online.weight, target)


@pytest.mark.parametrize(("tau", "source"), [(1.0, "momentum"), (0.0, "online")])
def test_extreme_tau_copies_exactly(tau, source):
    nets = {"online": nn.Linear(3, 4), "momentum": nn.Linear(3, 4)}
    expected = nets[source].weight.detach().clone()
    MomentumUpdater(tau, 1.0).update(nets["online"], nets["momentum"])
    assert torch.equal(nets["momentum"].weight, expected)


def test_buffers_are_left_alone():
    online, momentum = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    online.running_mean.fill_(3)
    MomentumUpdater(0.5).update(online, momentum)
    assert torch.equal(momentum.running_mean, torch.zeros(2))


@pytest.mark.parametrize("step", [0, 1, 50, 99, 100])
def test_tau_schedule(step):
    updater = MomentumUpdater(0.9, 0.99)
    updater.update_tau(step, 100)
    expected = 0.99 - 0.09 * (math.cos(math.pi * step / 100) + 1) / 2
    assert updater.cur_tau == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(("base", "final"), [(-0.1, 1.0), (0.9, 1.1), (0.99, 0.9)])
def test_bad_taus(base, final):
    with pytest.raises(AssertionError, match=r"momentum\.base_tau"):
        MomentumUpdater(base, final)
    with pytest.raises(ConfigError):
        MomentumUpdater(base, final)


def test_networks_of_different_shape():
    with pytest.raises(ValueError, match="2 and 0 parameters"):
        MomentumUpdater().update(nn.Linear(2, 2), nn.Identity())
