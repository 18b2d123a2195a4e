# SPDX-License-Identifier: MIT
"""RankMe, LiDAR and alpha-ReQ against closed forms, numpy's SVD and scikit-learn's LDA."""

import math

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from solo.errors import DataError
from solo.quality import alpha_req, lidar, rankme

pytestmark = pytest.mark.unit


def orthonormal(rows, columns, seed=0):
    matrix = np.random.default_rng(seed).normal(size=(rows, columns))
    return torch.from_numpy(np.linalg.qr(matrix)[0])


def with_spectrum(values, n=200, seed=0):
    """(n, len(values)) with these singular values and centred columns."""
    left = np.random.default_rng(seed).normal(size=(n, len(values)))
    left = torch.from_numpy(np.linalg.qr(left - left.mean(0))[0])
    right = orthonormal(len(values), len(values), seed + 1)
    return left @ torch.diag(torch.as_tensor(values, dtype=torch.float64)) @ right.T


@pytest.mark.parametrize("rank", [1, 3, 17, 32])
def test_rankme_of_equal_singular_values_is_the_rank(rank):
    features = with_spectrum([2.5] * rank + [0.0] * (32 - rank))
    assert float(rankme(features)) == pytest.approx(rank, rel=1e-4)
    assert float(rankme(1e-3 * features.float())) == pytest.approx(rank, rel=1e-3)


@pytest.mark.parametrize("shape", [(300, 40), (20, 40)])
def test_rankme_against_numpys_svd_and_it_does_not_centre(shape):
    features = torch.randn(*shape, generator=torch.Generator().manual_seed(0)) + 3
    s = np.linalg.svd(features.double().numpy(), compute_uv=False)
    p = s / s.sum() + 1e-7
    assert float(rankme(features)) == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-9)
    assert float(rankme(features - features.mean(0))) > 1.05 * float(rankme(features))


def lda_reference(features):
    """exp of the entropy of the eigenvalues that scikit-learn's LDA reports as ratios."""
    n, q, d = features.shape
    lda = LinearDiscriminantAnalysis(solver="eigen").fit(
        features.reshape(n * q, d), np.repeat(np.arange(n), q)
    )
    p = np.zeros(d)
    p[: len(lda.explained_variance_ratio_)] = lda.explained_variance_ratio_
    p = p + 1e-8
    return math.exp(-(p * np.log(p)).sum())


@pytest.mark.parametrize(("n", "q", "d"), [(30, 4, 8), (12, 10, 8), (9, 6, 16)])
def test_lidar_against_scikit_learns_discriminant_analysis(n, q, d):
    rng = np.random.default_rng(n)
    centres = rng.normal(size=(n, 1, d)) * np.linspace(3, 0.3, d)
    features = centres + rng.normal(size=(n, q, d)) @ rng.normal(size=(d, d))
    ours = float(lidar(torch.from_numpy(features), delta=0.0))
    assert ours == pytest.approx(lda_reference(features), rel=1e-5)
    assert ours <= min(d, n - 1)


def test_lidar_adds_delta_to_the_scatter_inside():
    x = torch.randn(6, 3, 4, dtype=torch.float64)
    means = x.mean(1)
    inside = sum((row - m).T @ (row - m) for row, m in zip(x, means, strict=True)) / (6 * 2)
    between = torch.cov(means.T)
    values = torch.linalg.eigvals(torch.linalg.solve(inside + 0.5 * torch.eye(4), between)).real
    p = values / values.sum() + 1e-8
    assert float(lidar(x, delta=0.5)) == pytest.approx(float((-(p * p.log()).sum()).exp()))


def test_lidar_tells_views_of_one_image_from_shuffled_ones():
    """What sets it apart: rows that are not views of the same image measure something else."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(200, 1, 16, generator=generator) * torch.logspace(1, -2, 16)
    x = images + 0.1 * torch.randn(200, 4, 16, generator=generator)
    mixed = x.reshape(800, 16)[torch.randperm(800, generator=generator)].view(200, 4, 16)
    assert abs(float(lidar(x)) - float(lidar(mixed))) > 1


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_alpha_req_of_a_power_law(alpha):
    eigenvalues = torch.arange(1, 81, dtype=torch.float64) ** -alpha
    eigenvalues[:10] = 7.0  # the first ten are not looked at
    eigenvalues[50:] = eigenvalues[50:] / 3  # nor those after the fiftieth
    assert float(alpha_req(with_spectrum(eigenvalues.sqrt()))) == pytest.approx(alpha, rel=1e-6)


def test_alpha_req_centres_and_leaves_out_zeros():
    eigenvalues = torch.arange(1, 31, dtype=torch.float64) ** -1.5
    eigenvalues[25:] = 0
    features = with_spectrum(eigenvalues.sqrt())
    assert float(alpha_req(features)) == pytest.approx(1.5, rel=1e-6)
    assert float(alpha_req(features + 100)) == pytest.approx(1.5, rel=1e-4)
    assert math.isnan(float(alpha_req(features[:, :5])))
    assert math.isfinite(float(alpha_req(features[:, :5], indices=(1, 5))))


def test_collapsed_features_measure_one():
    same = torch.ones(50, 8)
    assert float(rankme(same)) == pytest.approx(1, abs=1e-3)
    assert float(rankme(torch.zeros(50, 8))) == pytest.approx(1, abs=1e-3)
    assert float(lidar(torch.ones(50, 2, 8))) == pytest.approx(1, abs=1e-3)
    assert math.isnan(float(alpha_req(same)))


def test_not_finite_gives_nan():
    bad = torch.randn(20, 3, 4)
    bad[0, 0, 0] = math.inf
    assert math.isnan(float(rankme(bad[:, 0])))
    assert math.isnan(float(alpha_req(bad[:, 0], indices=(1, 4))))
    assert math.isnan(float(lidar(bad)))


def test_half_precision_and_gradients_do_not_matter():
    x = torch.randn(64, 8, dtype=torch.bfloat16, requires_grad=True)
    assert torch.equal(rankme(x), rankme(x.detach().double()))
    assert not rankme(x).requires_grad


@pytest.mark.parametrize(
    ("measure", "shape", "message"),
    [
        (rankme, (3,), r"\(images, dimensions\), got \(3,\)"),
        (rankme, (0, 4), "got"),
        (alpha_req, (2, 2, 2), "got"),
        (lidar, (4, 4), r"\(images, views, dimensions\)"),
        (lidar, (4, 1, 4), "4 images and 1 views"),
        (lidar, (1, 4, 4), "at least 2"),
    ],
)
def test_wrong_shapes_are_named(measure, shape, message):
    with pytest.raises(DataError, match=message):
        measure(torch.zeros(shape))
