# SPDX-License-Identifier: MIT
"""The modified VGG-19 of Morcos et al. (2019): sixteen convolutions and an average.

In the place of the multi-layer perceptron stands one fully connected layer, the classifier, which
is not part of an encoder here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from solo.backbones.options import check_kwargs, keywords

__all__ = ["VGG19", "vgg19"]

# convolutions per stage and their channels over `width`; a pooling between two stages
_STAGES = ((2, 1), (2, 2), (4, 4), (4, 8), (4, 8))


class VGG19(nn.Module):
    """VGG-19 with batch normalisation; images from 16 pixels on.

    Args:
        width: channels of the first stage (64).
    """

    def __init__(self, width: int = 64):
        super().__init__()
        layers: list[nn.Module] = []
        fan_in = 3
        for stage, (convs, factor) in enumerate(_STAGES):
            layers += [nn.MaxPool2d(2)] if stage else []
            for _ in range(convs):
                layers += [
                    nn.Conv2d(fan_in, factor * width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(factor * width),
                    nn.ReLU(inplace=True),
                ]
                fan_in = factor * width
        self.num_features = fan_in
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # as torchvision's VGG
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, X: Tensor) -> Tensor:
        """Images (N, 3, H, W) to features (N, 8 * width)."""
        return torch.flatten(self.avgpool(self.features(X)), 1)


def vgg19(**kwargs: Any) -> VGG19:
    """Build the modified VGG-19; its option is `width`."""
    check_kwargs("vgg19", kwargs, keywords(VGG19))
    return VGG19(**kwargs)
