# SPDX-License-Identifier: MIT
"""DGC, dynamic group convolution (Su et al. 2020), in self-supervised learning.

Each of the H heads of a convolution makes C_out / H outputs from its own choice of all input
channels (section 10 of the specification), in the order norm, ReLU, convolution:
    mask_h = relu(fc2(relu(fc1(avgpool(x)))))     its smallest entries are set to 0
    y = shuffle([conv_h(x mask_h) for all heads h])
Added to the method's loss: lasso sum_l sum_h mean(mask_h). Left-out channels are simulated. As in
the authors' residual network the norms and ReLUs of the blocks stay beside those of the layers, or
go with `gating.block_norms=False`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from solo.errors import ConfigError
from sparse_ext.gating.branches import Usage
from sparse_ext.gating.config.saliency import DGCConfig
from sparse_ext.gating.encoder import conv_macs
from sparse_ext.gating.method import GatedConv2d
from sparse_ext.gating.methods.saliency.parts import SaliencyConv2d, SaliencyMethod, keep_largest
from sparse_ext.gating.residual import conv_norm_pairs, residual_blocks
from sparse_ext.masks.living_weights import FUNCTIONAL_TYPES, Functional
from sparse_ext.masks.masked_layers import MASKED_TYPES, Masked

NARROW = 80  # input channels below which the squeeze is halved
# Largest normalised input. A mask grows with its input, so the product grows with its square. Where
# batch norm takes running statistics nothing divides that away: the few images that start some
# standard deviations out overflow some ten layers on. Not in the authors' code.
LIMIT = 20.0


class DGCConv2d(GatedConv2d):
    """Norm, ReLU and multi-head convolution, made by `split_heads`; the weight keeps its key.

    Attributes:
        norm: batch norm of the input.
        fc1, fc2: of all heads; head h has the h-th part of their outputs.
        inactive: number of input channels that a head leaves out, 0-dim.
    """

    heads: int
    norm: nn.BatchNorm2d
    fc1: SaliencyConv2d
    fc2: SaliencyConv2d
    inactive: Tensor

    def saliences(self, x: Tensor) -> Tensor:
        """Normalised input (N, C, H, W) to (N, heads, C), not negative, float32."""
        pooled = x.float().mean((2, 3), keepdim=True)
        mask = torch.relu(self.fc2(torch.relu(self.fc1(pooled))))
        return mask.reshape(len(x), self.heads, self.in_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, C_out, H', W')."""
        x = self.norm(x).clamp(0.0, LIMIT)
        saliences = self.saliences(x)
        mask = saliences * keep_largest(saliences, self.in_channels - self.inactive)
        copies = x[:, None] * mask.to(x.dtype)[:, :, :, None, None]
        geometry = (self.stride, self.padding, self.dilation, self.heads)
        out = F.conv2d(copies.flatten(1, 2), self.seen_weight(), None, *geometry)  # type: ignore[arg-type]
        self.account(saliences, mask, conv_macs(self, out))
        return F.channel_shuffle(out, self.heads)

    def account(self, saliences: Tensor, mask: Tensor, dense: int) -> None:
        """Report MACs; `rho_in` is without the saliency networks."""
        kept = dense * (mask > 0).float().mean()
        used = kept + self.fc1.weight.numel() + self.fc2.weight.numel()
        figures = {"saliency": saliences.mean((0, 2)).sum()}
        self.record(Usage(used, dense, figures, shares={"rho_in": (kept, dense)}))


class MaskedDGCConv2d(Masked, DGCConv2d):
    """With a mask on its weights, too."""


class FunctionalDGCConv2d(Functional, MaskedDGCConv2d):
    """With the mask in its forward pass, in those passes that are pruned."""


MASKED_TYPES[DGCConv2d] = MaskedDGCConv2d
FUNCTIONAL_TYPES[MaskedDGCConv2d] = FunctionalDGCConv2d


def split_heads(conv: Any, config: DGCConfig) -> Any:
    """Turn a plain convolution into a `DGCConv2d`, in place."""
    inputs, heads = conv.in_channels, config.heads
    squeeze = config.squeeze // 2 if inputs < NARROW else config.squeeze
    hidden = max(1, inputs // squeeze)
    conv.__class__ = DGCConv2d
    conv.heads = heads
    conv.norm = nn.BatchNorm2d(inputs)
    conv.fc1 = SaliencyConv2d(inputs, heads * hidden, bias=None)
    conv.fc2 = SaliencyConv2d(heads * hidden, heads * inputs, bias=1.0, groups=heads)
    conv.register_buffer("inactive", torch.tensor(0))
    return conv


class DGC(SaliencyMethod):
    """Every convolution but the stem becomes one that normalises its own input."""

    @property
    def loss_weight(self) -> float:
        """Weight of the saliency loss: the setting `gating.lasso`."""
        return self.config.lasso

    def patch(self, backbone: nn.Module) -> Mapping[str, Any]:
        """Convolutions of the residual blocks, shortcuts included.

        Without the blocks' own norms one follows the last block.
        """
        blocks = residual_blocks(backbone, self.config.name)
        for name, block in blocks.items():
            for conv, _ in conv_norm_pairs(block):
                self._check_shape(f"{name}.{conv}", block.get_submodule(conv))
        layers = {
            f"{name}.{conv}": split_heads(block.get_submodule(conv), self.config)
            for name, block in blocks.items()
            for conv, _ in conv_norm_pairs(block)
        }
        if self.config.block_norms:
            return layers
        channels = [layer.out_channels for layer in layers.values()][-1]
        for block in blocks.values():
            for _, norm in conv_norm_pairs(block):
                block.set_submodule(norm, nn.Identity())
            block.relu = nn.Identity()
        stage = backbone.get_submodule(name.rpartition(".")[0])
        stage.add_module("norm", nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True)))
        return layers

    def _check_shape(self, name: str, conv: Any) -> None:
        if conv.out_channels % self.config.heads:
            raise ConfigError(
                f"gating.heads={self.config.heads} does not divide the {conv.out_channels} output "
                f"channels of {name}: change gating.heads or backbone.kwargs.width."
            )

    def advance(self, layers: Mapping[str, Any], progress: float) -> None:
        """More and more input channels are left out."""
        for layer in layers.values():
            layer.inactive.fill_(inactive_at(self.config, progress, layer.in_channels))


def inactive_at(config: DGCConfig, progress: float, channels: int) -> int:
    """round(C (1 - gate_factor) p); p is 0 before `start`, 1 from `settled` on, linear between."""
    p = (progress - config.start) / (config.settled - config.start)
    return round(channels * (1 - config.gate_factor) * min(1.0, max(0.0, p)))
