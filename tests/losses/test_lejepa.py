# SPDX-License-Identifier: MIT
"""SIGReg against quadrature written here in float64, closed forms and invariances; the loss."""

import math

import numpy as np
import pytest
import torch

from solo.errors import ConfigError
from solo.losses.lejepa import draw_directions, lejepa_loss_func, sigreg

pytestmark = pytest.mark.unit


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def directions(k, count, seed=0):
    return draw_directions(k, count, torch.Generator().manual_seed(seed)).double()


def quadrature(z, directions):
    """The statistic on 33 points over all of [-3, 3], complex and one direction at a time."""
    t = np.linspace(-3, 3, 33)
    total = 0.0
    for direction in directions.numpy().T:
        y = z.numpy() @ direction
        c = np.exp(1j * t[:, None] * y).mean(1)
        e = abs(c - np.exp(-(t**2) / 2)) ** 2
        total += len(z) * np.trapezoid(e * np.exp(-(t**2) / 2), t)
    return total / directions.shape[1]


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0, 4.0])
def test_sigreg_against_quadrature(scale):
    z, a = scale * normal(40, 6) + 0.2, directions(6, 9)
    torch.testing.assert_close(sigreg(z, a), torch.tensor(quadrature(z, a)).double())


def test_sigreg_of_a_collapsed_sample():
    """C = 1 and S' = 0, so that the integrand is (1 - phi)^2 phi, whose integral is known."""
    n, gauss = 50, lambda a: math.sqrt(2 * math.pi / a) * math.erf(3 * math.sqrt(a / 2))
    exact = n * (gauss(1) - 2 * gauss(2) + gauss(3))
    got = float(sigreg(torch.zeros(n, 4), directions(4, 3)))
    assert got == pytest.approx(exact, rel=2e-3)  # the trapezoidal rule's own error


def test_sigreg_of_a_gaussian_sample_does_not_grow_with_its_size():
    a = directions(8, 64)
    small = [float(sigreg(normal(100, 8, seed=s), a)) for s in range(30)]
    large = [float(sigreg(normal(1600, 8, seed=s), a)) for s in range(30)]
    assert np.mean(large) == pytest.approx(np.mean(small), rel=0.15)
    wrong = [float(sigreg(1.5 * normal(n, 8), a)) for n in (100, 1600)]
    assert wrong[1] > 10 * wrong[0] > 10 * np.mean(small)


def test_turning_embeddings_and_directions_together_changes_nothing():
    z, a = normal(30, 5) * torch.linspace(0.1, 2, 5), directions(5, 7)
    turn = torch.linalg.qr(normal(5, 5, seed=3))[0]
    torch.testing.assert_close(sigreg(z @ turn, turn.T @ a), sigreg(z, a))


def test_directions_are_of_unit_length_and_repeatable():
    a = directions(16, 1000)
    torch.testing.assert_close(a.norm(dim=0), torch.ones(1000).double(), rtol=0, atol=1e-6)
    assert torch.equal(a, directions(16, 1000))
    assert not torch.equal(a, directions(16, 1000, seed=1))
    assert float((a @ a.T / 1000 * 16 - torch.eye(16)).abs().max()) < 0.2  # no preferred axis


def test_sigreg_stays_in_float32_under_autocast():
    z, a = normal(40, 6).float(), directions(6, 9)
    with torch.autocast("cpu", torch.bfloat16):
        inside = sigreg(z.bfloat16(), a)
        assert inside.dtype is torch.float32
        torch.testing.assert_close(sigreg(z, a), sigreg(z.double(), a).float())
    torch.testing.assert_close(inside, sigreg(z.bfloat16().float(), a))


def test_gradient_of_sigreg():
    z, a = normal(7, 3).requires_grad_(), directions(3, 4)
    assert torch.autograd.gradcheck(lambda x: sigreg(x, a), (z,))


@pytest.mark.parametrize("locals_", [0, 3])
def test_loss_by_its_definition(locals_):
    large, small, a = normal(2, 10, 4), normal(locals_, 10, 4, seed=1), directions(4, 5)
    views = [*large, *small]
    centre = (large[0] + large[1]) / 2
    invariance = np.mean([((centre - view) ** 2).mean() for view in views])
    statistic = np.mean([quadrature(view, a) for view in views])
    expected = torch.tensor(0.8 * invariance + 0.2 * statistic)
    torch.testing.assert_close(lejepa_loss_func(large, small, 0.2, a), expected)
    if not locals_:
        torch.testing.assert_close(lejepa_loss_func(large, None, 0.2, a), expected)
    pooled = torch.tensor(0.8 * invariance + 0.2 * quadrature(torch.cat(views), a))
    torch.testing.assert_close(lejepa_loss_func(large, small, 0.2, a, pool_views=True), pooled)


def test_the_gradient_flows_through_the_centre():
    large, a = normal(2, 6, 3).requires_grad_(), directions(3, 4)
    lejepa_loss_func(large, None, 0.0, a).backward()
    # d/dz1 of the mean of ((z1 - z2)/2)^2 over both views
    difference = (large[0] - large[1]).detach()
    torch.testing.assert_close(large.grad[0], difference / (2 * 6 * 3))


@pytest.mark.parametrize("shapes", [((4, 3), (4, 5)), ((2, 4, 3), (3, 5)), ((4, 3), (3,))])
def test_wrong_shapes_are_named(shapes):
    with pytest.raises(ConfigError, match=r"embeddings \(N, k\) and directions \(k, S\)"):
        sigreg(torch.zeros(shapes[0]), torch.zeros(shapes[1]))
