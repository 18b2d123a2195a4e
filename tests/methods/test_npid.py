# SPDX-License-Identifier: MIT
"""NPID: closed forms, equations in numpy, the memory bank."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from solo.errors import ConfigError
from solo.losses import npid_loss_func, npid_softmax_loss_func
from solo.losses.npid import update_bank
from solo.methods import METHODS
from tests.methods.helpers import tiny_batch
from tests.methods.test_pretexts import build, ready

pytestmark = pytest.mark.unit


def test_npid_closed_form_for_a_uniform_bank():
    """All rows alike and every other image as a negative: each P is 1/n exactly."""
    n, e = 12, 0.7
    logits = torch.full((3, n), e)
    Z = torch.tensor(n * math.exp(e))
    expected = math.log(n) + (n - 1) * math.log(n / (n - 1))
    loss = npid_loss_func(logits[:, 0], logits[:, 1:], Z, n)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_npid_against_equations_in_numpy():
    rng = np.random.default_rng(0)
    positive, negatives, Z, n = rng.normal(size=4), rng.normal(size=(4, 5)), 23.0, 40
    total = 0.0
    for i in range(4):
        own = np.exp(positive[i]) / Z
        total -= np.log(own / (own + 5 / n))
        for value in negatives[i]:
            total -= np.log((5 / n) / (np.exp(value) / Z + 5 / n))
    args = (torch.tensor(positive), torch.tensor(negatives), torch.tensor(Z), n)
    assert float(npid_loss_func(*args)) == pytest.approx(total / 4)


def test_npid_softmax_is_cross_entropy_over_the_bank():
    model = ready(build("npid", {"nce_k": 0, "temperature": 0.5}))
    bank = model.bank.clone()
    batch = tiny_batch(large=1)
    loss = model.training_step(batch, 0)
    out = METHODS["npid"].forward(model, batch[1][0])
    logits = F.normalize(out["z"], dim=1) @ bank.T / 0.5
    expected = -torch.log_softmax(logits, dim=1)[range(4), batch[0]].mean()
    torch.testing.assert_close(loss, expected + F.cross_entropy(out["logits"], batch[2]))
    torch.testing.assert_close(npid_softmax_loss_func(logits, batch[0]), expected)
    loss.backward()  # the bank has moved on by now


def test_npid_Z_is_estimated_once_and_rows_stay_on_the_sphere():
    model = ready(build("npid"))
    torch.testing.assert_close(model.bank.norm(dim=1), torch.ones(16))
    model.training_step(tiny_batch(large=1), 0)
    first = model.Z.clone()
    assert first > 0
    for seed in range(3):
        model.training_step(tiny_batch(large=1, seed=seed + 5), 0)
    assert torch.equal(model.Z, first)
    torch.testing.assert_close(model.bank.norm(dim=1), torch.ones(16))
    assert {"bank", "Z"} <= set(model.state_dict())


def test_npid_Z_is_n_times_the_mean_over_positives_and_negatives():
    model = ready(build("npid"))
    logits = torch.randn(4, 7)
    model._estimate_Z(logits, 16)
    assert float(model.Z) == pytest.approx(16 * float(logits.exp().mean()), rel=1e-6)


def test_npid_bank_moves_only_where_images_were_and_averages_duplicates():
    bank = F.normalize(torch.randn(6, 3), dim=1)
    before = bank.clone()
    features = F.normalize(torch.randn(3, 3), dim=1)
    update_bank(bank, torch.tensor([4, 1, 4]), features, momentum=0.5)
    twice = F.normalize(0.5 * before[4] + 0.25 * (features[0] + features[2]), dim=0)
    torch.testing.assert_close(bank[4], twice)
    torch.testing.assert_close(bank[1], F.normalize(before[1] + features[1], dim=0))
    assert torch.equal(bank[[0, 2, 3, 5]], before[[0, 2, 3, 5]])


def test_npid_refuses_what_cannot_work():
    for kwargs, message in (({"nce_k": -1}, "nce_k"), ({"bank_momentum": 1.0}, "bank_momentum")):
        with pytest.raises(ConfigError, match=message):
            build("npid", kwargs)
    with pytest.raises(ConfigError, match="image_folder"):
        build("npid", data__format="dali")
