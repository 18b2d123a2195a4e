# SPDX-License-Identifier: MIT
"""Wide ResNet-28 for 32x32 images, as the semi-supervised literature uses it (LeakyReLU 0.1)."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from solo.backbones.options import check_kwargs
from solo.errors import ConfigError

__all__ = ["wide_resnet28w2", "wide_resnet28w8"]

_OPTIONS = {"first_stride", "drop_rate"}


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=1e-3)


def _activation() -> nn.LeakyReLU:
    return nn.LeakyReLU(0.1)


class WideResnetBasicBlock(nn.Module):
    """Two 3x3 convolutions with normalisation before each.

    Args:
        in_planes, out_planes: channels; where they differ a 1x1 `convShortcut` is added.
        stride: of the first convolution and of the shortcut.
        drop_rate: dropout between the convolutions.
        activate_before_residual: the shortcut takes the activated input too.
    """

    def __init__(
        self,
        in_planes: int,
        out_planes: int,
        stride: int,
        drop_rate: float = 0.0,
        activate_before_residual: bool = False,
    ):
        super().__init__()
        self.bn1, self.relu1 = _norm(in_planes), _activation()
        self.conv1 = nn.Conv2d(in_planes, out_planes, 3, stride, padding=1)
        self.bn2, self.relu2 = _norm(out_planes), _activation()
        self.conv2 = nn.Conv2d(out_planes, out_planes, 3, padding=1)
        self.drop_rate = drop_rate
        self.activate_before_residual = activate_before_residual
        self.convShortcut = None
        if in_planes != out_planes:
            self.convShortcut = nn.Conv2d(in_planes, out_planes, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_planes, H, W) -> (N, out_planes, H / stride, W / stride)."""
        inner = self.relu1(self.bn1(x))
        if self.convShortcut is not None:
            if self.activate_before_residual:
                x = inner
            else:
                # In solo-learn's networks conv1 reads the raw input here, and its checkpoints
                # depend on that. bn1 joins with weight zero: DDP needs a gradient for it.
                inner = x + 0.0 * inner
        out = self.relu2(self.bn2(self.conv1(inner)))
        out = F.dropout(out, self.drop_rate, self.training)
        return self.conv2(out) + (x if self.convShortcut is None else self.convShortcut(x))


class WideResnetNetworkBlock(nn.Module):
    """`nb_layers` blocks in a row; the first one changes channels and resolution."""

    def __init__(
        self,
        nb_layers: int,
        in_planes: int,
        out_planes: int,
        block: type[nn.Module],
        stride: int,
        drop_rate: float = 0.0,
        activate_before_residual: bool = False,
    ):
        super().__init__()
        first = block(in_planes, out_planes, stride, drop_rate, activate_before_residual)
        others = [
            block(out_planes, out_planes, 1, drop_rate, activate_before_residual)
            for _ in range(1, nb_layers)
        ]
        self.layer = nn.Sequential(first, *others)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_planes, H, W) -> (N, out_planes, H / stride, W / stride)."""
        return self.layer(x)


class WideResNet(nn.Module):
    """Wide ResNet without classifier: (N, 3, H, W) -> (N, 64 * widen_factor).

    Args:
        first_stride: stride of the first of the three stages (the others have 2).
        depth: 6 n + 4.
        widen_factor: multiplies the 16, 32, 64 channels of the stages.
        drop_rate: dropout inside the blocks.

    Raises:
        ConfigError: no such depth.
    """

    def __init__(
        self,
        first_stride: int = 1,
        depth: int = 28,
        widen_factor: int = 2,
        drop_rate: float = 0.0,
    ):
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ConfigError(f"depth={depth}: a wide ResNet has 6 n + 4 layers (10, 16, 22, 28)")
        n = (depth - 4) // 6
        widths = [16, *(width * widen_factor for width in (16, 32, 64))]
        strides = (first_stride, 2, 2)
        self.num_features = widths[-1]
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1)
        self.block1, self.block2, self.block3 = (
            WideResnetNetworkBlock(
                n, widths[i], widths[i + 1], WideResnetBasicBlock, strides[i], drop_rate, i == 0
            )
            for i in range(3)
        )
        self.bn1, self.relu = _norm(widths[-1]), _activation()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="leaky_relu")

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) to features (N, num_features)."""
        out = self.block3(self.block2(self.block1(self.conv1(x))))
        return F.adaptive_avg_pool2d(self.relu(self.bn1(out)), 1).flatten(1)


def wide_resnet28w2(**kwargs: Any) -> WideResNet:
    """Build a Wide ResNet-28-2; its options are `first_stride` and `drop_rate`."""
    check_kwargs("wide_resnet28w2", kwargs, _OPTIONS)
    return WideResNet(depth=28, widen_factor=2, **kwargs)


def wide_resnet28w8(**kwargs: Any) -> WideResNet:
    """Build a Wide ResNet-28-8; its options are `first_stride` and `drop_rate`."""
    check_kwargs("wide_resnet28w8", kwargs, _OPTIONS)
    return WideResNet(depth=28, widen_factor=8, **kwargs)
