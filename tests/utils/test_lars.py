# SPDX-License-Identifier: MIT
"""LARS against its formula written in numpy."""

import numpy as np
import pytest
import torch

from solo.errors import ConfigError
from solo.utils.lars import LARS

pytestmark = pytest.mark.unit

DEFAULTS = {
    "momentum": 0,
    "dampening": 0,
    "weight_decay": 0,
    "nesterov": False,
    "eta": 1e-3,
    "eps": 1e-8,
    "clip_lr": False,
    "exclude_bias_n_norm": False,
}


def reference(weights, grads_of_step, lr, **options):
    """Three steps of the update, tensor by tensor; `grads_of_step(i, p)` gives the gradients."""
    o = {**DEFAULTS, **options}
    weights = [w.astype(np.float64) for w in weights]
    buffers = [None] * len(weights)
    for i in range(3):
        grads = grads_of_step(i, weights)
        for j, (p, g) in enumerate(zip(weights, grads, strict=True)):
            norm_p, norm_g = np.sqrt((p**2).sum()), np.sqrt((g**2).sum())
            d = g
            adapted = p.ndim != 1 or not o["exclude_bias_n_norm"]
            if adapted and norm_p > 0 and norm_g > 0:
                wd = o["weight_decay"]
                ratio = o["eta"] * norm_p / (norm_g + wd * norm_p + o["eps"])
                if o["clip_lr"]:
                    ratio = min(ratio / lr, 1)
                d = (g + wd * p) * ratio
            if o["momentum"]:
                old = buffers[j]
                new = d if old is None else o["momentum"] * old + (1 - o["dampening"]) * d
                buffers[j] = new
                d = d + o["momentum"] * new if o["nesterov"] else new
            weights[j] = p - lr * d
    return weights


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9, "weight_decay": 1e-3},
        {"momentum": 0.9, "weight_decay": 1e-3, "clip_lr": True, "eta": 0.02},
        {
            "momentum": 0.9,
            "weight_decay": 1e-3,
            "clip_lr": True,
            "eta": 0.02,
            "exclude_bias_n_norm": True,
        },
        {"momentum": 0.9, "weight_decay": 1e-3, "nesterov": True},
        {"momentum": 0.9, "dampening": 0.5},
        {"clip_lr": True, "eta": 10.0},
    ],
)
def test_three_steps_equal_the_formula(options):
    rng = np.random.default_rng(0)
    start = [rng.normal(size=shape) for shape in ((4, 6), (5,), (2, 3, 3))] + [np.zeros((3, 2))]

    def grads_of_step(i, weights):
        return [np.sin(weights[0]) * (i + 1), np.cos(weights[1]), 0 * weights[2], weights[3] + 1]

    params = [torch.nn.Parameter(torch.tensor(w)) for w in start]
    optimizer = LARS(params, lr=0.3, **options)
    for i in range(3):
        for p, g in zip(
            params, grads_of_step(i, [p.detach().numpy() for p in params]), strict=True
        ):
            p.grad = torch.tensor(g)
        optimizer.step()
    expected = reference(start, grads_of_step, 0.3, **options)
    for p, w in zip(params, expected, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), w, rtol=1e-12, atol=1e-14)


def test_unadapted_tensors_get_no_weight_decay():
    bias = torch.nn.Parameter(torch.ones(3))
    bias.grad = torch.zeros(3)
    LARS([bias], lr=1.0, weight_decay=0.5, exclude_bias_n_norm=True).step()
    assert torch.equal(bias, torch.ones(3))


def test_closure_none_gradients_and_state_key():
    used, unused = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    optimizer = LARS([used, unused], lr=0.1, momentum=0.9)

    def closure():
        loss = (used**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4
    assert set(optimizer.state[used]) == {"momentum_buffer"}
    assert unused not in optimizer.state


def test_zero_learning_rate_with_clipping_is_finite():
    p = torch.nn.Parameter(torch.ones(2, 2))
    p.grad = torch.ones(2, 2)
    LARS([p], lr=0.0, clip_lr=True).step()
    assert torch.equal(p, torch.ones(2, 2))


@pytest.mark.parametrize(
    "options",
    [
        {"lr": -1},
        {"momentum": -1},
        {"weight_decay": -1},
        {"nesterov": True},
        {"nesterov": True, "momentum": 0.9, "dampening": 0.1},
    ],
)
def test_bad_values(options):
    with pytest.raises(ValueError, match="LARS"):
        LARS([torch.nn.Parameter(torch.ones(1))], **{"lr": 0.1, **options})


def test_learning_rate_is_required():
    with pytest.raises(ConfigError, match="give lr"):
        LARS([torch.nn.Parameter(torch.ones(1))])
