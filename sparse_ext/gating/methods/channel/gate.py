# SPDX-License-Identifier: MIT
"""The gate of a residual block: from its input to one open-or-closed bit per channel and image.

DGNet (Li et al. 2021), as VICReg-Dual uses it: Gumbel-sigmoid noise in training, a hard threshold
with a straight-through gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparse_ext.gating.encoder import GateConv2d

EPS = 1e-8


class StraightThrough(torch.autograd.Function):
    """1[soft >= 0.5] forward, exactly 0 or 1; the identity backward."""

    @staticmethod
    def forward(ctx: Any, soft: Tensor) -> Tensor:
        """`soft` in [0, 1] of any shape."""
        return (soft >= 0.5).to(soft.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        """The gradient of the hard values is taken for that of the soft ones."""
        return grad


def gumbel_sigmoid(logits: Tensor, temperature: float) -> Tensor:
    """Noisy hard gates; P(open) = sigmoid(logit), whatever the temperature.

    The difference of two Gumbel variables is logistic: log u - log(1 - u), u uniform.

    Args:
        logits: any shape, float32.
        temperature: of the sigmoid through which the gradient goes.

    Returns:
        0 or 1 per logit; gradient that of sigmoid((logit + noise) / temperature).
    """
    u = torch.rand_like(logits)
    noise = torch.log(u + EPS) - torch.log(1 - u + EPS)
    return StraightThrough.apply(torch.sigmoid((logits + noise) / temperature))


class ChannelGate(nn.Module):
    """Global pooling, 1x1 bottleneck, one logit per channel.

    Args:
        channels: C, of the block's input.
        planes: P, channels to gate.
        reduction: the hidden layer has C // reduction channels (at least 1).
        temperature: of the sigmoid, in training.
        bias: initial bias of the last layer; None = it has none.
    """

    def __init__(
        self, channels: int, planes: int, reduction: int, temperature: float, bias: float | None
    ) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.temperature = temperature
        self.reduce = GateConv2d(channels, hidden, 1, bias=False)
        self.norm = nn.BatchNorm2d(hidden)
        self.expand = GateConv2d(hidden, planes, 1, bias=bias is not None)
        for conv in (self.reduce, self.expand):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        if bias is not None:
            nn.init.constant_(self.expand.bias, bias)  # type: ignore[arg-type]

    @property
    def macs(self) -> int:
        """Multiply-accumulates per image: C (C // r) + (C // r) P."""
        return self.reduce.weight.numel() + self.expand.weight.numel()

    def logits(self, x: Tensor) -> Tensor:
        """Block input (N, C, H, W) to logits (N, P, 1, 1), float32."""
        z = self.norm(self.reduce(x.mean(dim=(2, 3), keepdim=True)))
        return self.expand(torch.relu(z)).float()

    def forward(self, x: Tensor) -> Tensor:
        """Block input (N, C, H, W) to hard gates (N, P, 1, 1), float32; noisy in training."""
        logits = self.logits(x)
        if self.training:
            return gumbel_sigmoid(logits, self.temperature)
        return (logits >= 0).float()
