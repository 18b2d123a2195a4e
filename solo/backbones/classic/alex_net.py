# SPDX-License-Identifier: MIT
"""AlexNet without its classifier: five convolutions and two fully connected layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from solo.backbones.options import check_kwargs, keywords
from solo.errors import ConfigError

__all__ = ["AlexNet", "alexnet"]

# output channels over `width`, kernel, stride, padding, and whether a pooling follows
_CONVS = ((1, 11, 4, 2, True), (3, 5, 1, 2, True), (6, 3, 1, 1, False), (4, 3, 1, 1, False))
_LAST = (4, 3, 1, 1, True)
_POOLED = 6  # side of the map that the fully connected layers see


class AlexNet(nn.Module):
    """The one-column AlexNet (torchvision's layer sizes); images from 63 pixels on.

    The fully connected layers are `mlp.*` rather than torchvision's `classifier.*`: they are part
    of the encoder, and pruned with it.

    Args:
        width: channels of the first convolution (64).
        batch_norm: normalise before each ReLU. The large learning rates of the published recipes
            (0.4 and 0.5) need it.
        dropout: of the two fully connected layers' inputs.

    Raises:
        ConfigError: when called with images that are too small.
    """

    def __init__(self, width: int = 64, batch_norm: bool = True, dropout: float = 0.5):
        super().__init__()
        layers: list[nn.Module] = []
        fan_in = 3
        for factor, kernel, stride, padding, pool in (*_CONVS, _LAST):
            fan_out = factor * width
            layers.append(nn.Conv2d(fan_in, fan_out, kernel, stride, padding, bias=not batch_norm))
            layers += [nn.BatchNorm2d(fan_out)] if batch_norm else []
            layers.append(nn.ReLU(inplace=True))
            layers += [nn.MaxPool2d(3, 2)] if pool else []
            fan_in = fan_out
        self.num_features = 64 * width
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(_POOLED)
        mlp: list[nn.Module] = []
        for size in (fan_in * _POOLED**2, self.num_features):
            mlp += [nn.Dropout(dropout), nn.Linear(size, self.num_features, bias=not batch_norm)]
            mlp += [nn.BatchNorm1d(self.num_features)] if batch_norm else []
            mlp.append(nn.ReLU(inplace=True))
        self.mlp = nn.Sequential(*mlp)

    def forward(self, X: Tensor) -> Tensor:
        """Images (N, 3, H, W) to features (N, 64 * width)."""
        if min(X.shape[-2:]) < 63:
            raise ConfigError(
                f"alexnet needs images of at least 63 pixels, got {tuple(X.shape[-2:])}: for "
                "small images use resnet18 or vgg19"
            )
        return self.mlp(torch.flatten(self.avgpool(self.features(X)), 1))


def alexnet(**kwargs: Any) -> AlexNet:
    """Build an AlexNet; its options are `width`, `batch_norm` and `dropout`."""
    check_kwargs("alexnet", kwargs, keywords(AlexNet))
    return AlexNet(**kwargs)
