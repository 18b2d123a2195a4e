# SPDX-License-Identifier: MIT
"""Batch whitening: by Cholesky (W-MSE) and by Newton iterations (IterNorm, VIbCReg)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from solo.errors import ConfigError


class Whitening2d(nn.Module):
    """Decorrelates features over the batch by the inverse Cholesky factor of their covariance.

    Ermolov et al. 2020, section 3. Computed in float32 under autocast.

    Args:
        output_dim: D, for reference only.
        eps: shrinks the covariance to `(1 - eps) C + eps I`.
    """

    def __init__(self, output_dim: int, eps: float = 0.0):
        super().__init__()
        self.output_dim = output_dim
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Whiten a batch of features of shape (N, D).

        Raises:
            ConfigError: if the covariance is singular, as with N <= D and eps 0.
        """
        with torch.autocast(x.device.type, enabled=False):
            x = x if x.dtype == torch.double else x.float()
            centred = x - x.mean(dim=0)
            covariance = centred.T @ centred / (len(x) - 1)
            eye = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
            try:
                factor = torch.linalg.cholesky((1 - self.eps) * covariance + self.eps * eye)
            except torch.linalg.LinAlgError as error:
                raise ConfigError(
                    f"whitening {len(x)} samples of dimension {x.shape[1]}: their covariance is "
                    "singular; raise method_kwargs.whitening_size well above proj_output_dim, "
                    "or set whitening_eps > 0."
                ) from error
            return torch.linalg.solve_triangular(factor, centred.T, upper=False).T


class iterative_normalization_py(torch.autograd.Function):
    """Whitening by Newton's iteration for the inverse square root (Huang et al. 2019).

    With the covariance S of each group of channels, r = 1 / tr(S) and N = r S:
    P_0 = I, P_{k+1} = (3 P_k - P_k^3 N) / 2, and sqrt(r) P_T approaches S^{-1/2}.

    Arguments of `apply`: X (N, D, ...), running_mean (G, C, 1), running_wmat (G, C, C), channels
    per group C, T, eps added to the covariance's diagonal, momentum of the running statistics,
    training. In training mode the running statistics are updated in place.
    """

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        X, running_mean, running_wmat, channels, ctx.T, eps, momentum, ctx.training = args
        x = _grouped(X, channels)
        if not ctx.training:
            ctx.save_for_backward(running_wmat.clone())
            return _ungrouped(running_wmat @ (x - running_mean), X)
        mean = x.mean(dim=-1, keepdim=True)
        xc = x - mean
        eye = torch.eye(channels, dtype=x.dtype, device=x.device).expand(len(x), -1, -1)
        sigma = torch.baddbmm(eye, xc, xc.mT, beta=eps, alpha=1 / x.shape[-1])
        r = sigma.diagonal(dim1=-2, dim2=-1).sum(-1).reciprocal()[:, None, None]
        powers = [eye]
        for _ in range(ctx.T):
            p = powers[-1]
            powers.append(1.5 * p - 0.5 * torch.linalg.matrix_power(p, 3) @ (sigma * r))
        whitening = powers[-1] * r.sqrt()
        running_mean.lerp_(mean, momentum)
        running_wmat.lerp_(whitening, momentum)
        ctx.save_for_backward(xc, r, sigma * r, *powers)
        return _ungrouped(whitening @ xc, X)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        if not ctx.training:
            (whitening,) = ctx.saved_tensors
            gradient = _ungrouped(whitening.mT @ _grouped(grad, whitening.shape[-1]), grad)
            return gradient, *[None] * 7
        xc, r, normalised, *powers = ctx.saved_tensors  # all square matrices here are symmetric
        g = _grouped(grad, xc.shape[1])
        whitening = powers[-1] * r.sqrt()
        g_whitening = g @ xc.mT
        g_p = g_whitening * r.sqrt()
        g_normalised = torch.zeros_like(g_p)
        for p in reversed(powers[:-1]):
            p2 = p @ p
            right = g_p @ normalised
            g_normalised -= 0.5 * p2 @ p @ g_p
            g_p = 1.5 * g_p - 0.5 * (right @ p2 + p @ right @ p + p2 @ right)
        # r enters twice: in N = r S and in the final sqrt(r); r = 1 / tr(S)
        g_r = _inner(g_normalised, normalised) / r + _inner(g_whitening, whitening) / (2 * r)
        eye = powers[0]
        g_sigma = g_normalised * r - g_r * r**2 * eye
        g_xc = whitening @ g + (g_sigma + g_sigma.mT) @ xc / xc.shape[-1]
        return _ungrouped(g_xc - g_xc.mean(dim=-1, keepdim=True), grad), *[None] * 7


def _grouped(X: Tensor, channels: int) -> Tensor:
    """(N, D, ...) to (D / channels, channels, N * ...)."""
    return X.transpose(0, 1).reshape(X.shape[1] // channels, channels, -1)


def _ungrouped(x: Tensor, like: Tensor) -> Tensor:
    """Inverse of `_grouped`, to the shape of `like`."""
    n, d, *rest = like.shape
    return x.reshape(d, n, *rest).transpose(0, 1).contiguous()


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each pair of matrices, (G, 1, 1)."""
    return (a * b).sum(dim=(1, 2), keepdim=True)


class IterNorm(nn.Module):
    """Iterative normalisation layer (Huang et al. 2019): whitens groups of channels.

    Args:
        num_features: D.
        num_groups: wanted number of groups, used if `num_channels` is None.
        num_channels: channels per group C, halved until it divides D.
        T: Newton iterations.
        dim: number of dimensions of the input.
        eps: added to the diagonal of the covariance.
        momentum: weight of the new batch in the running statistics.
        affine: learn a scale and a shift.
    """

    running_mean: Tensor
    running_wm: Tensor

    def __init__(
        self,
        num_features: int,
        num_groups: int = 64,
        num_channels: int | None = None,
        T: int = 5,
        dim: int = 2,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
    ):
        super().__init__()
        self.T, self.dim, self.eps, self.momentum = T, dim, eps, momentum
        self.num_features = num_features
        self.affine = affine
        channels = num_channels or (num_features - 1) // num_groups + 1
        while num_features % channels:
            channels //= 2
        self.num_channels, self.num_groups = channels, num_features // channels
        shape = [1, num_features] + [1] * (dim - 2)
        for name in ("weight", "bias"):
            self.register_parameter(name, nn.Parameter(torch.empty(shape)) if affine else None)
        self.register_buffer("running_mean", torch.zeros(self.num_groups, channels, 1))
        wide = torch.eye(channels).expand(self.num_groups, channels, channels).clone()
        self.register_buffer("running_wm", wide)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the affine scale to one and the shift to zero."""
        if self.affine:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)

    def forward(self, X: Tensor) -> Tensor:
        """Whiten (N, D, ...); by running statistics in eval mode."""
        with torch.autocast(X.device.type, enabled=False):
            whitened = iterative_normalization_py.apply(
                X.to(self.running_mean.dtype),
                self.running_mean,
                self.running_wm,
                self.num_channels,
                self.T,
                self.eps,
                self.momentum,
                self.training,
            )
            return whitened * self.weight + self.bias if self.affine else whitened

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, num_channels={self.num_channels}, T={self.T}, eps={self.eps}, "
            f"momentum={self.momentum}, affine={self.affine}"
        )
