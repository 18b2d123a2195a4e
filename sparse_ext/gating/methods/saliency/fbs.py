# SPDX-License-Identifier: MIT
"""FBS, feature boosting and suppression (Gao et al. 2019), in self-supervised learning.

For a convolution with input x (section 10 of the specification):
    ss = mean_hw |x|     g = relu(Phi ss + rho)     pi = the ceil(d C_out) largest of g, else 0
    y = pi norm(conv(x)) + 1[pi > 0] beta           pi takes the place of the norm's gamma
With `unit_mean`, pi is divided by its mean over the channels of the image.
Added to the method's loss: lambda sum_l mean ||g||_1. Suppressed channels are simulated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparse_ext.gating.branches import Usage
from sparse_ext.gating.config.saliency import FBSConfig
from sparse_ext.gating.encoder import conv_macs
from sparse_ext.gating.method import GatedConv2d
from sparse_ext.gating.methods.saliency.parts import SaliencyConv2d, SaliencyMethod, keep_largest
from sparse_ext.gating.residual import conv_norm_pairs, residual_blocks
from sparse_ext.masks.living_weights import FUNCTIONAL_TYPES, Functional
from sparse_ext.masks.masked_layers import MASKED_TYPES, Masked


class FBSConv2d(GatedConv2d):
    """A convolution and its batch norm, made by `suppress`; the weight keeps its key.

    Attributes:
        saliency: Phi and rho.
        norm: batch norm without affine part.
        beta: (C_out,).
        active: number of channels that stay, 0-dim.
        unit_mean: whether pi has mean 1 in each image.
    """

    unit_mean: bool
    saliency: SaliencyConv2d
    norm: nn.BatchNorm2d
    beta: nn.Parameter
    active: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, C_out, H', W')."""
        ss = x.float().abs().mean((2, 3), keepdim=True)
        g = torch.relu(self.saliency(ss)).flatten(1)
        pi = (g * keep_largest(g, self.active))[:, :, None, None]
        out = self._conv_forward(x, self.seen_weight(), None)
        self.account(ss, g, pi, conv_macs(self, out))
        if self.unit_mean:
            pi = pi / pi.mean(1, keepdim=True).clamp_min(torch.finfo(pi.dtype).tiny)
        out = self.norm(out)
        opened = (pi > 0).to(out.dtype)
        return pi.to(out.dtype) * out + opened * self.beta.to(out.dtype)[:, None, None]

    def account(self, ss: Tensor, g: Tensor, pi: Tensor, dense: int) -> None:
        """Report MACs, inputs counted as dense; `rho_in_out` leaves out idle inputs as well."""
        outs = (pi > 0).float().mean((1, 2, 3))
        ins = (ss > 0).float().mean((1, 2, 3))
        shares = {
            "rho_out": (dense * outs.mean(), dense),
            "rho_in_out": (dense * (outs * ins).mean(), dense),
        }
        used = dense * outs.mean() + self.saliency.weight.numel()
        self.record(Usage(used, dense, {"saliency": g.sum(1).mean()}, shares=shares))


class MaskedFBSConv2d(Masked, FBSConv2d):
    """With a mask on its weights, too."""


class FunctionalFBSConv2d(Functional, MaskedFBSConv2d):
    """With the mask in its forward pass, in those passes that are pruned."""


MASKED_TYPES[FBSConv2d] = MaskedFBSConv2d
FUNCTIONAL_TYPES[MaskedFBSConv2d] = FunctionalFBSConv2d


def suppress(conv: Any, norm: Any, unit_mean: bool = False) -> Any:
    """Turn a convolution into an `FBSConv2d` that does the work of `norm` as well, in place."""
    conv.__class__ = FBSConv2d
    conv.unit_mean = unit_mean
    conv.saliency = SaliencyConv2d(conv.in_channels, conv.out_channels, bias=1.0)
    conv.norm = nn.BatchNorm2d(conv.out_channels, norm.eps, norm.momentum, affine=False)
    conv.beta = nn.Parameter(norm.bias.detach().clone())
    conv.register_buffer("active", torch.tensor(conv.out_channels))
    return conv


class FBS(SaliencyMethod):
    """Every convolution but the stem; each view has its own saliences."""

    @property
    def loss_weight(self) -> float:
        """Weight of the saliency loss: the setting lambda."""
        return self.config.lamb

    def patch(self, backbone: nn.Module) -> Mapping[str, Any]:
        """Convolutions of the residual blocks, shortcuts included; they take in their norms."""
        layers = {}
        for name, block in residual_blocks(backbone, self.config.name).items():
            for conv, norm in conv_norm_pairs(block):
                layers[f"{name}.{conv}"] = suppress(
                    block.get_submodule(conv), block.get_submodule(norm), self.config.unit_mean
                )
                block.set_submodule(norm, nn.Identity())
        return layers

    def advance(self, layers: Mapping[str, Any], progress: float) -> None:
        """The number of channels that stay follows the density."""
        density = density_at(self.config, progress)
        for layer in layers.values():
            layer.active.fill_(winners(density, layer.out_channels))


def density_at(config: FBSConfig, progress: float) -> float:
    """d: 1 at first, then down by `density_step` per phase, `density` from `settled` on."""
    phases = math.ceil(round((1 - config.density) / config.density_step, 6))
    done = math.floor(round(progress / config.settled * phases, 6))
    return max(config.density, 1 - config.density_step * done)


def winners(density: float, channels: int) -> int:
    """ceil(d C), where a product that is whole but for its last digits stays."""
    return math.ceil(round(density * channels, 6))
