# SPDX-License-Identifier: MIT
"""Every loss against an independent formula in numpy, written as loops over samples."""

from importlib import import_module
from pkgutil import iter_modules

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.testing import assert_allclose

from solo import losses
from solo.errors import ConfigError
from solo.losses.mae import patchify
from solo.losses.vibcreg import covariance_loss as vibcreg_covariance
from solo.losses.vicreg import covariance_loss as vicreg_covariance

pytestmark = pytest.mark.unit
SHAPES = [(8, 4), (5, 12), (16, 16), (2, 3)]


def pair(n, d, dtype=torch.float32, scale=1.0):
    return (scale * torch.randn(n, d, dtype=dtype, requires_grad=True) for _ in range(2))


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def array(t):
    return t.detach().double().numpy()


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def off_diagonal_squares(c):
    return sum(c[i, j] ** 2 for i in range(len(c)) for j in range(len(c)) if i != j)


def check(value, reference, tol=1e-5):
    assert value.shape == ()
    assert_allclose(value.item(), reference, rtol=tol, atol=tol)


def barlow_reference(z1, z2, lamb, scale):
    z1, z2 = ((z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5) for z in (z1, z2))
    c = z1.T @ z2 / len(z1)
    return scale * (((np.diag(c) - 1) ** 2).sum() + lamb * off_diagonal_squares(c))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kwargs", [{}, {"lamb": 0.3, "scale_loss": 2.0}])
def test_barlow(shape, kwargs):
    z1, z2 = pair(*shape, scale=3.0)
    expected = barlow_reference(
        array(z1), array(z2), kwargs.get("lamb", 5e-3), kwargs.get("scale_loss", 0.025)
    )
    check(losses.barlow_loss_func(z1, z2, **kwargs), expected)


def variance_reference(z):
    return np.maximum(0, 1 - np.sqrt(z.var(0, ddof=1) + 1e-4)).mean()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weights", [None, (1.0, 2.0, 3.0)])
def test_vicreg(shape, weights):
    z1, z2 = pair(*shape, scale=0.8)
    a, b = array(z1), array(z2)
    sim, var, cov = weights or (25.0, 25.0, 1.0)
    covariances = [off_diagonal_squares(np.cov(z.T)) / z.shape[1] for z in (a, b)]
    expected = sim * ((a - b) ** 2).mean() + cov * sum(covariances)
    expected += var * (variance_reference(a) + variance_reference(b))
    check(losses.vicreg_loss_func(z1, z2, *(weights or ())), expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_vibcreg(shape):
    z1, z2 = pair(*shape)
    a, b = array(z1), array(z2)
    correlations = [off_diagonal_squares(np.corrcoef(z.T)) / z.shape[1] ** 2 for z in (a, b)]
    expected = 25 * (((a - b) ** 2).mean() + variance_reference(a) + variance_reference(b))
    check(losses.vibcreg_loss_func(z1, z2), expected + 200 * sum(correlations))


@pytest.mark.parametrize("function", [vicreg_covariance, vibcreg_covariance])
def test_covariance_when_one_feature_dominates(function):
    """The N x N form subtracts a diagonal that may be 1e9 times larger than the result."""
    z1, z2 = pair(6, 20)
    scale = torch.ones(20)
    scale[3] = 1e4
    z1, z2 = z1 * scale, z2 * scale
    wide = [torch.cat([z, z.new_zeros(0, 20)]) for z in (z1, z2)]
    if function is vicreg_covariance:
        expected = sum(off_diagonal_squares(np.cov(array(z).T)) / 20 for z in wide)
    else:
        expected = sum(off_diagonal_squares(np.corrcoef(array(z).T)) / 400 for z in wide)
    assert_allclose(function(z1, z2).item(), expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["barlow", "vicreg", "vibcreg"])
def test_gradients_by_finite_differences(name):
    function = getattr(losses, f"{name}_loss_func")
    for shape in [(4, 7), (7, 4)]:
        inputs = tuple(pair(*shape, dtype=torch.float64))
        assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("simplified", [True, False])
@pytest.mark.parametrize(
    ("function", "scale", "offset", "stops"),
    [
        (losses.byol_loss_func, -2, 2, True),
        (losses.simsiam_loss_func, -1, 0, True),
        (losses.wmse_loss_func, -2, 2, None),
    ],
)
def test_cosine_losses(function, scale, offset, stops, simplified):
    p, z = torch.randn(6, 5, requires_grad=True), torch.randn(6, 5, requires_grad=True)
    expected = offset + scale * (unit(array(p)) * unit(array(z))).sum(-1).mean()
    loss = function(p, z, simplified=simplified)
    check(loss, expected)
    loss.backward()
    assert p.grad.abs().sum() > 0
    assert (z.grad is None) == (simplified if stops is None else stops)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.parametrize("indexes", [[0, 1, 2, 0, 1, 2], [0, 0, 1, 1, 0, 1], [3, 3, 3, 3, 3, 3]])
def test_simclr(indexes, temperature):
    z = torch.randn(6, 4)
    similarity = np.exp(unit(array(z)) @ unit(array(z)).T / temperature)
    terms = []
    for i in range(6):
        others = [j for j in range(6) if j != i]
        positive = sum(similarity[i, j] for j in others if indexes[j] == indexes[i])
        terms.append(-np.log(positive / sum(similarity[i, j] for j in others)))
    check(losses.simclr_loss_func(z, torch.tensor(indexes), temperature), np.mean(terms))


def test_simclr_with_a_small_temperature_stays_finite():
    z = torch.randn(6, 4, requires_grad=True)
    losses.simclr_loss_func(z, torch.arange(3).repeat(2), temperature=0.005).backward()
    assert z.grad.isfinite().all()


def test_mocov2plus():
    q, k, queue = torch.randn(5, 4), torch.randn(5, 4), torch.randn(4, 9)
    rows = zip(array(q), array(k), strict=True)
    logits = np.array([[query @ key, *(query @ array(queue))] for query, key in rows])
    check(losses.mocov2plus_loss_func(q, k, queue, 0.2), -log_softmax(logits / 0.2)[:, 0].mean())


def test_mocov3():
    q, k = torch.randn(5, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    logits = unit(array(q)) @ unit(array(k)).T / 0.3
    loss = losses.mocov3_loss_func(q, k, 0.3)
    check(loss, -np.diag(log_softmax(logits)).mean() * 0.6)
    loss.backward()
    soft = np.exp(log_softmax(logits)) - np.eye(5)  # of the cross entropy, by the logits
    by_unit = soft.T @ unit(array(q)) / 0.3 * 0.6 / 5
    keys = array(k)
    norm = np.linalg.norm(keys, axis=1, keepdims=True)
    along = (by_unit * unit(keys)).sum(1, keepdims=True) * unit(keys)
    np.testing.assert_allclose(array(k.grad), (by_unit - along) / norm, rtol=1e-4, atol=1e-6)
    assert losses.mocov3_loss_func(q, k.detach(), 0.3).grad_fn is not None


def test_nnclr():
    nn, p = torch.randn(5, 4), torch.randn(5, 4)
    logits = unit(array(nn)) @ unit(array(p)).T / 0.2
    check(losses.nnclr_loss_func(nn, p, 0.2), -np.diag(log_softmax(logits)).mean())


def test_ressl():
    q, k = torch.randn(5, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    queue = torch.randn(9, 4)
    student = log_softmax(array(q) @ array(queue).T / 0.1)
    teacher = np.exp(log_softmax(array(k) @ array(queue).T / 0.04))
    loss = losses.ressl_loss_func(q, k, queue)
    check(loss, -(teacher * student).sum(1).mean())
    loss.backward()
    assert k.grad is None


@pytest.mark.parametrize("views", [2, 5])
def test_swav(views):
    preds = [torch.randn(4, 6) for _ in range(views)]
    assignments = [torch.rand(4, 6) for _ in range(2)]
    terms = []
    for i, a in enumerate(assignments):
        for j, p in enumerate(preds):
            if i != j:
                terms.append(-(array(a) * log_softmax(array(p) / 0.1)).sum(1).mean())
    check(losses.swav_loss_func(preds, assignments), np.mean(terms))


def test_deepclusterv2():
    outputs, assignments = torch.randn(3, 2, 1, 4, 6), torch.randint(0, 6, (3, 4))
    assignments[1, 2] = -1
    heads = []
    for h in range(3):
        picked = [
            -log_softmax(array(outputs)[h, v, 0, i] / 0.1)[assignments[h, i]]
            for v in range(2)
            for i in range(4)
            if assignments[h, i] >= 0
        ]
        heads.append(np.mean(picked))
    check(losses.deepclusterv2_loss_func(outputs, assignments), np.mean(heads))


def test_deepclusterv2_without_any_assignment_is_zero():
    outputs = torch.randn(2, 2, 1, 4, 6, requires_grad=True)
    loss = losses.deepclusterv2_loss_func(outputs, torch.full((2, 4), -1))
    loss.backward()
    assert loss.item() == 0
    assert outputs.grad.abs().sum() == 0


@pytest.mark.parametrize("views", [2, 4])
def test_dino(views):
    loss_func = losses.DINOLoss(6, 0.04, 0.07, 3, 10, num_large_crops=views)
    center = np.zeros((1, 6))
    for epoch in (0, 1, 5):
        loss_func.epoch = epoch
        student, teacher = torch.randn(views * 4, 6, requires_grad=True), torch.randn(8, 6)
        temperature = [0.04, 0.055, 0.07, 0.07, 0.07, 0.07][epoch]
        q = np.exp(log_softmax((array(teacher) - center) / temperature)).reshape(2, 4, 6)
        p = log_softmax(array(student) / 0.1).reshape(views, 4, 6)
        pairs = [(i, j) for i in range(2) for j in range(views) if i != j]
        check(
            loss_func(student, teacher),
            np.mean([-(q[i] * p[j]).sum(-1).mean() for i, j in pairs]),
        )
        center = 0.9 * center + 0.1 * array(teacher).mean(0, keepdims=True)
        assert_allclose(loss_func.center.numpy(), center, atol=1e-6)
    assert set(loss_func.state_dict()) == {"center"}


@pytest.mark.parametrize("normalise", [True, False])
def test_mae(normalise):
    images, mask = torch.rand(3, 3, 8, 8), torch.tensor([[1.0, 0, 1, 1]]).repeat(3, 1)
    pred = torch.randn(3, 4, 48)
    errors = []
    for n in range(3):
        for index, (row, column) in enumerate([(0, 0), (0, 4), (4, 0), (4, 4)]):
            if mask[n, index]:
                patch = array(images)[n, :, row : row + 4, column : column + 4]
                target = patch.transpose(1, 2, 0).reshape(-1)
                if normalise:
                    target = (target - target.mean()) / np.sqrt(target.var(ddof=1) + 1e-6)
                errors.append(((array(pred)[n, index] - target) ** 2).mean())
    loss = losses.mae_loss_func(images, pred, mask, 4, norm_pix_loss=normalise)
    check(loss, np.mean(errors))


def test_patchify_explains_a_bad_size():
    with pytest.raises(ConfigError, match=r"9x9 with patch_size 4.*crop_size"):
        patchify(torch.zeros(1, 3, 9, 9), 4)


def test_all_names_are_exported():
    modules = [import_module(f"solo.losses.{m.name}") for m in iter_modules(losses.__path__)]
    defined = {n for m in modules for n in vars(m) if n.endswith("_loss_func")}
    assert defined <= {*losses.__all__}
    assert len(losses.__all__) == len({*losses.__all__})
    assert all(callable(getattr(losses, name)) for name in losses.__all__)


def test_barlow_under_bfloat16_autocast_is_finite_and_close():
    z1, z2 = torch.randn(8, 32), torch.randn(8, 32)
    exact = losses.barlow_loss_func(z1, z2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = losses.barlow_loss_func(F.linear(z1, torch.eye(32)), F.linear(z2, torch.eye(32)))
    assert_allclose(low.item(), exact.item(), rtol=0.05)
