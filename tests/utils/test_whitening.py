# SPDX-License-Identifier: MIT
"""Whitening against closed forms (numpy, scipy) and finite differences."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from solo.errors import ConfigError
from solo.utils.whitening import IterNorm, Whitening2d, iterative_normalization_py

pytestmark = pytest.mark.unit


def correlated(n, d, dtype=torch.float32):
    return torch.randn(n, d, dtype=dtype) @ torch.randn(d, d, dtype=dtype) + 3


@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_cholesky_whitening(eps):
    x = correlated(40, 5, torch.double)
    c = (1 - eps) * np.cov(x.numpy().T) + eps * np.eye(5)
    expected = (x.numpy() - x.numpy().mean(0)) @ np.linalg.inv(np.linalg.cholesky(c)).T
    out = Whitening2d(5, eps)(x)
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-8, atol=1e-8)
    if eps == 0:
        np.testing.assert_allclose(np.cov(out.numpy().T), np.eye(5), atol=1e-8)
    assert Whitening2d(5).state_dict() == {}


def test_cholesky_gradient_and_dtype():
    x = correlated(8, 3, torch.double).requires_grad_()
    assert torch.autograd.gradcheck(Whitening2d(3, 0.1), (x,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert Whitening2d(3)(torch.randn(8, 3).bfloat16()).dtype == torch.float32


def test_singular_covariance_is_explained():
    with pytest.raises(ConfigError, match=r"3 samples of dimension 6.*whitening_size"):
        Whitening2d(6)(torch.eye(3, 6))


def test_iternorm_approaches_the_inverse_square_root():
    x = torch.randn(200, 4, dtype=torch.double) @ (torch.eye(4) + 0.2 * torch.randn(4, 4)).double()
    layer = IterNorm(4, num_groups=1, T=12, eps=0).double()
    centred = x - x.mean(0)
    inverse_root = np.linalg.inv(sqrtm(np.cov(x.numpy().T, bias=True)))
    np.testing.assert_allclose(layer(x).detach(), centred.numpy() @ inverse_root.T, atol=1e-6)


def test_iternorm_running_statistics_and_eval():
    x = correlated(50, 6)
    layer = IterNorm(6, num_groups=3, momentum=1.0)
    trained = layer(x)
    torch.testing.assert_close(layer.running_mean, x.mean(0).view(3, 2, 1))
    layer.eval()
    torch.testing.assert_close(layer(x), trained)  # momentum 1: the batch is the running statistic
    shapes = {name: tuple(t.shape) for name, t in layer.state_dict().items()}
    assert shapes == {
        "weight": (1, 6),
        "bias": (1, 6),
        "running_mean": (3, 2, 1),
        "running_wm": (3, 2, 2),
    }
    half = IterNorm(6, num_groups=3, momentum=0.25)
    half(x)
    torch.testing.assert_close(half.running_mean, 0.25 * x.mean(0).view(3, 2, 1))
    expected = 0.25 * layer.running_wm + 0.75 * torch.eye(2)
    torch.testing.assert_close(half.running_wm, expected)


@pytest.mark.parametrize("shape", [(7, 6), (4, 6, 2, 2)])
@pytest.mark.parametrize("training", [True, False])
def test_iternorm_gradient(shape, training):
    x = torch.randn(shape, dtype=torch.double, requires_grad=True)
    mean = torch.randn(2, 3, 1, dtype=torch.double)
    wm = torch.randn(2, 3, 3, dtype=torch.double)

    def whiten(x):
        args = (mean.clone(), wm.clone(), 3, 4, 1e-2, 0.1, training)
        return iterative_normalization_py.apply(x, *args)

    assert torch.autograd.gradcheck(whiten, (x,))


@pytest.mark.parametrize(
    ("features", "groups", "channels", "expected"),
    [
        (2048, 64, None, (64, 32)),
        (96, 64, None, (48, 2)),
        (10, 4, None, (10, 1)),
        (8, 64, 4, (2, 4)),
    ],
)
def test_iternorm_group_sizes(features, groups, channels, expected):
    layer = IterNorm(features, groups, channels)
    assert (layer.num_groups, layer.num_channels) == expected


def test_iternorm_without_affine_and_under_autocast():
    layer = IterNorm(4, affine=False)
    assert list(layer.parameters()) == []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.randn(8, 4).bfloat16()).dtype == torch.float32
