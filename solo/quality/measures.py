# SPDX-License-Identifier: MIT
"""How good a representation is, measured without labels: RankMe, LiDAR, alpha-ReQ.

Pure functions of features. All compute in float64 on the device of the features, and answer with
NaN, not with an error, where a feature is NaN or infinite.
"""

from __future__ import annotations

import torch
from torch import Tensor

from solo.errors import DataError

_RANKME_EPSILON = 1e-7
_LIDAR_EPSILON = 1e-8


def rankme(features: Tensor) -> Tensor:
    """RankMe, the effective rank of features (Garrido et al. 2023, arXiv 2210.02885, eq. 1).

    The exponential of the entropy of the singular values, which are scaled to sum 1; the features
    are not centred. It does not depend on the features' scale. It settles when N is at least
    about 5 D, so say N beside it.

    >>> float(rankme(torch.eye(8)[:, :6])) > 5.99
    True

    Args:
        features: (N, D), one row per image.

    Returns:
        a scalar, float64, between 1 (collapsed) and min(N, D).

    Raises:
        DataError: there are no features, or they are not a matrix.
    """
    _check(features, 2, "(images, dimensions)")
    values = _squared_singular_values(features).sqrt()
    return _exp_entropy(values / values.sum().clamp(min=_tiny(values)) + _RANKME_EPSILON)


def lidar(features: Tensor, delta: float = 1e-4) -> Tensor:
    """LiDAR, the rank that linear discriminant analysis sees (Thilak et al. 2023, 2312.04000).

    Every image is a class, and its views are the samples of the class. The exponential of the
    entropy of the eigenvalues of Sw^-1/2 Sb Sw^-1/2, scaled to sum 1, where Sb is the covariance
    of the class means and Sw the mean covariance inside the classes.

    Args:
        features: (N, Q, D), Q views of each of N images; the views of a row must be of the same
            image.
        delta: multiple of the identity that is added to Sw.

    Returns:
        a scalar, float64, between 1 and min(D, N - 1).

    Raises:
        DataError: fewer than two images or two views, or not three dimensions.
    """
    _check(features, 3, "(images, views, dimensions)")
    images, views, dim = features.shape
    if images < 2 or views < 2:
        raise DataError(
            f"lidar compares images by their views: it needs at least 2 of each, got features of "
            f"{images} images and {views} views"
        )
    x = features.detach().double()
    if not x.isfinite().all():
        return x.new_tensor(torch.nan)
    means = x.mean(dim=1)
    within = (x - means[:, None]).reshape(-1, dim)
    within_cov = within.T @ within / (images * (views - 1))
    within_cov.diagonal().add_(delta)
    between = (means - means.mean(dim=0)) / (images - 1) ** 0.5
    root = torch.linalg.cholesky(within_cov)  # whitens as well as the symmetric root does
    whitened = torch.linalg.solve_triangular(root, between.T, upper=False)
    values = _squared_singular_values(whitened)
    return _exp_entropy(values / values.sum().clamp(min=_tiny(values)) + _LIDAR_EPSILON)


def alpha_req(features: Tensor, indices: tuple[int, int] = (11, 50)) -> Tensor:
    """alpha-ReQ, how fast the spectrum of features falls (Agrawal et al. 2022).

    Minus the slope of the least-squares line through log eigenvalue over log index of the
    features' covariance. About 1 is good; larger means that few directions carry everything.

    Args:
        features: (N, D), one row per image.
        indices: first and last index, counted from 1, of the eigenvalues (largest first) that
            the line is fitted to; those that are zero are left out.

    Returns:
        a scalar, float64; NaN where fewer than two of these eigenvalues are above zero.

    Raises:
        DataError: there are no features, or they are not a matrix.
    """
    _check(features, 2, "(images, dimensions)")
    x = features.detach().double()
    values = _squared_singular_values(x - x.mean(dim=0)).flip(0) / max(1, len(x) - 1)
    rank = int((values > values.max() * len(values) * torch.finfo(x.dtype).eps).sum())
    first, last = indices[0], min(indices[1], rank)
    if last - first < 1:
        return x.new_tensor(torch.nan)
    index = torch.arange(first, last + 1, device=x.device, dtype=x.dtype).log()
    height = values[first - 1 : last].log()
    index = index - index.mean()
    return -(index * height).sum() / index.pow(2).sum()


def _check(features: Tensor, dims: int, shape: str) -> None:
    if features.dim() != dims or not features.numel():
        raise DataError(f"features must be {shape}, got {tuple(features.shape)}")


def _tiny(values: Tensor) -> float:
    return torch.finfo(values.dtype).tiny


def _squared_singular_values(matrix: Tensor) -> Tensor:
    """Ascending, of the smaller side's length; NaN where the matrix is not finite.

    The eigenvalues of the smaller Gram matrix: a tenth of the time of a singular value
    decomposition, and in float64 what it loses is far below the measures' own epsilons.
    """
    x = matrix.detach().double()
    gram = x.T @ x if len(x) >= x.shape[1] else x @ x.T
    if not gram.isfinite().all():
        return torch.full_like(gram[0], torch.nan)
    return torch.linalg.eigvalsh(gram).clamp(min=0)


def _exp_entropy(p: Tensor) -> Tensor:
    return (-(p * p.log()).sum()).exp()
