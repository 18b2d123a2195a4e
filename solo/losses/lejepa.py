# SPDX-License-Identifier: MIT
"""LeJEPA (Balestriero and LeCun 2025, arXiv 2511.08544): views agree, embeddings are Gaussian."""

from __future__ import annotations

import torch
from torch import Tensor

from solo.errors import ConfigError
from solo.losses.precision import in_float32
from solo.utils.ranks import gather, get_world_size

# The quadrature of the Epps-Pulley statistic: 17 points from 0 to 3, which stand for [-3, 3].
POINTS = 17
LAST_POINT = 3.0


def draw_directions(dim: int, count: int, generator: torch.Generator) -> Tensor:
    """Random directions for `sigreg`: standard normal columns scaled to length 1.

    Args:
        dim: dimension k of the embeddings.
        count: number S of directions.
        generator: all ranks must use one in the same state; the result is on its device.

    Returns:
        (dim, count).
    """
    columns = torch.randn(dim, count, generator=generator, device=generator.device)
    return columns / columns.norm(dim=0)


def sigreg(z: Tensor, directions: Tensor) -> Tensor:
    """Sketched isotropic Gaussian regularisation: how far embeddings are from N(0, I).

    Along each direction the Epps-Pulley statistic N * integral of |C(t) - exp(-t^2/2)|^2
    exp(-t^2/2) over [-3, 3] by the trapezoidal rule, where C is the empirical characteristic
    function of all ranks' N projected embeddings; then the mean over the directions. Computed in
    float32 (float64 for float64 embeddings), also under autocast.

    Args:
        z: this rank's embeddings, (N, k); all ranks have as many.
        directions: (k, S) columns of length 1, the same on all ranks.

    Returns:
        a scalar, at least 0; for standard normal embeddings its mean does not grow with N.

    Raises:
        ConfigError: the shapes do not fit together.
    """
    if z.dim() != 2 or directions.dim() != 2 or z.shape[1] != directions.shape[0]:
        raise ConfigError(
            f"sigreg needs embeddings (N, k) and directions (k, S), got {tuple(z.shape)} and "
            f"{tuple(directions.shape)}"
        )
    with torch.autocast(z.device.type, enabled=False):
        z = z if z.dtype is torch.double else z.float()
        t = torch.linspace(0, LAST_POINT, POINTS, dtype=z.dtype, device=z.device)
        gaussian = (-t.square() / 2).exp()
        weights = torch.full_like(t, 2 * LAST_POINT / (POINTS - 1))  # the integrand is even
        weights[[0, -1]] /= 2
        angles = (z @ directions.to(z))[..., None] * t
        means = torch.stack([angles.cos().mean(dim=0), angles.sin().mean(dim=0)])
        real, imaginary = gather(means[None]).mean(dim=0)
        error = (real - gaussian).square() + imaginary.square()
        samples = len(z) * get_world_size()
        return samples * (error @ (weights * gaussian)).mean()


@in_float32
def lejepa_loss_func(
    global_z: Tensor,
    local_z: Tensor | None,
    lamb: float,
    directions: Tensor,
    pool_views: bool = False,
) -> Tensor:
    """LeJEPA's loss: (1 - lamb) * invariance + lamb * SIGReg.

    The invariance is the mean squared distance of the embeddings of all views to the mean over the
    image's global views; its gradient flows through that mean, too. SIGReg tests the embeddings of
    each view by themselves and is averaged over the views.

    Args:
        global_z: embeddings of the global views, (V, N, k).
        local_z: embeddings of the local views, (V', N, k); None or V' = 0 where there are none.
        lamb: weight of SIGReg against the invariance, from 0 to 1.
        directions: (k, S), see `sigreg`.
        pool_views: test all views' embeddings as one sample of (V + V') N instead.

    Returns:
        a scalar.
    """
    z = global_z if local_z is None or not len(local_z) else torch.cat([global_z, local_z])
    invariance = (global_z.mean(dim=0) - z).square().mean()
    samples = [z.flatten(0, 1)] if pool_views else list(z)
    gaussianity = torch.stack([sigreg(sample, directions) for sample in samples]).mean()
    return (1 - lamb) * invariance + lamb * gaussianity
