# SPDX-License-Identifier: MIT
"""A convolution whose base path decides where its conditional path is computed (CGNet, CDG).

With B = 1 on the blocks of the base path (section 9.1 of the specification):
    Yb = conv(x, W B)                       u = normal(Yb) - tau      m = 1[u > 0]
    Yc = conv(x, W (1 - B))                 Y = Yb + Yc m
Yb is a convolution with groups, and Yc = conv(x, W) - Yb: less work than two whole ones. Closed
places are simulated: Yc is computed everywhere and multiplied by zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from solo.errors import ConfigError
from solo.utils.views import View, current_view
from sparse_ext.gating.branches import Usage
from sparse_ext.gating.config.spatial import TILE, CGNetConfig
from sparse_ext.gating.encoder import conv_macs
from sparse_ext.gating.method import GatedConv2d
from sparse_ext.gating.methods.spatial.paths import Pattern, base_input, base_weight
from sparse_ext.masks.living_weights import FUNCTIONAL_TYPES, Functional
from sparse_ext.masks.masked_layers import MASKED_TYPES, Masked

EPS = 1e-5


class SmoothStep(torch.autograd.Function):
    """1[u > 0] forward; the derivative of sigmoid(alpha u) backward."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, alpha: float, sparse_bp: bool) -> Tensor:
        """`u` of any shape; with `sparse_bp` no gradient where u < 0."""
        ctx.save_for_backward(u)
        ctx.alpha, ctx.sparse_bp = alpha, sparse_bp
        return (u > 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        """alpha s (1 - s) with s = sigmoid(alpha u)."""
        (u,) = ctx.saved_tensors
        s = torch.sigmoid(ctx.alpha * u)
        grad = grad * ctx.alpha * s * (1 - s)
        return (grad * (u >= 0) if ctx.sparse_bp else grad), None, None


def tile_mean(x: Tensor, dim: int) -> Tensor:
    """Every 8 consecutive entries along `dim` replaced by their mean."""
    mean = x.unflatten(dim, (-1, TILE)).mean(dim + 1)
    return mean.repeat_interleave(TILE, dim)


class SpatialConv2d(GatedConv2d):
    """Made from a plain convolution by `gate_conv`; same weight key.

    Attributes:
        tau: thresholds (C_out,); one axis, so that LARS can leave them unadapted.
        norms: one normalisation per branch, with statistics of its own; none with `instance`.
        patterns: base path per branch.
    """

    tau: nn.Parameter
    norms: nn.ModuleDict
    settings: CGNetConfig
    patterns: Mapping[str, Pattern]

    def base(self, x: Tensor, weight: Tensor, branch: str) -> Tensor:
        """Yb (N, C_out, H', W'): the blocks of this branch's base path alone."""
        pattern = self.patterns[branch]
        geometry = (self.stride, self.padding, self.dilation, len(pattern))
        return F.conv2d(base_input(x, pattern), base_weight(weight, pattern), None, *geometry)  # type: ignore[arg-type]

    def normal(self, salience: Tensor, branch: str) -> Tensor:
        """The salience (N, C, H, W) with mean 0 and variance 1 per channel, float32."""
        salience = salience.float()
        if self.settings.norm == "instance":
            var, mean = torch.var_mean(salience, (2, 3), correction=0, keepdim=True)
            return (salience - mean) * (var + EPS).rsqrt()
        return self.norms[branch](salience)

    def decide(self, base: Tensor, branch: str) -> Tensor:
        """From Yb (N, C, H, W) to hard decisions m of that shape, float32."""
        tau = self.tau.float()
        if self.settings.structured:
            base, tau = tile_mean(base, 1), tile_mean(tau, 0)
        u = self.normal(base, branch) - tau[:, None, None]
        return SmoothStep.apply(u, self.settings.alpha, self.settings.sparse_bp)

    def paths(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Yb, Yc and m of the branch under way, (N, C_out, H', W') each (CDG, Fig. 9)."""
        branch, weight = self.context.branch, self.seen_weight()
        if self.settings.shuffle:
            x = F.channel_shuffle(x, self.settings.groups)
        base = self.base(x, weight, branch)
        conditional = self._conv_forward(x, weight, None) - base
        first = self._first_view()
        return base, conditional, self.decide(base, branch) if first is None else first

    def _first_view(self) -> Tensor | None:
        """The decisions of the step's first view, where the others have to use them."""
        view = current_view()
        if not self.settings.unified or view is None or view.index == 0:
            return None
        return self.context.tape[View(0, view.encoder)].layers[self.name].masks

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, C_out, H', W')."""
        base, conditional, m = self.paths(x)
        if m.shape != base.shape:
            raise ConfigError(
                "gating.unified=true needs views of one size: set it to false, or leave out the "
                "small crops."
            )
        self.account(m)
        return base + conditional * m.to(base.dtype)

    def account(self, m: Tensor) -> None:
        """Report eta = mean(1 - m) and the MACs of Eq. 13 (normalisation and tau are free)."""
        dense, base = conv_macs(self, m), 1 / self.settings.groups
        closed = (1 - m.detach()).mean()
        elements = m[0].numel()
        keep = current_view() is not None
        if keep and not self.settings.unified:
            m = m.detach().bool()
        self.record(
            Usage(
                dense * (base + (1 - base) * (1 - closed)),
                dense,
                masks=m if keep else None,
                shares={"eta": (closed * elements, elements)},
            )
        )


class MaskedSpatialConv2d(Masked, SpatialConv2d):
    """With a mask on its weights, too."""


class FunctionalSpatialConv2d(Functional, MaskedSpatialConv2d):
    """With the mask in its forward pass, in those passes that are pruned."""


MASKED_TYPES[SpatialConv2d] = MaskedSpatialConv2d
FUNCTIONAL_TYPES[MaskedSpatialConv2d] = FunctionalSpatialConv2d


def gate_conv(conv: nn.Module, settings: CGNetConfig, patterns: Mapping[str, Pattern]) -> nn.Module:
    """Turn a plain convolution into its gated form, in place.

    Args:
        conv: an `nn.Conv2d` without groups.
        settings: of CGNet or CDG.
        patterns: base path per branch.
    """
    outputs = len(conv.weight)  # type: ignore[arg-type]
    conv.__class__ = SpatialConv2d
    conv.settings, conv.patterns = settings, dict(patterns)  # type: ignore[assignment]
    conv.tau = nn.Parameter(torch.full((outputs,), settings.tau_init))
    norms = {}
    if settings.norm == "batch":
        norms = {branch: nn.BatchNorm2d(outputs, affine=False) for branch in patterns}
    conv.norms = nn.ModuleDict(norms)
    return conv
