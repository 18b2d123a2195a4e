# SPDX-License-Identifier: MIT
"""torchvision's ResNets, and the same networks at another width."""

from __future__ import annotations

from typing import Any

import torchvision.models as tv
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from solo.backbones.options import check_kwargs, keywords
from solo.errors import ConfigError

__all__ = ["WidthResNet", "resnet18", "resnet50"]

_BASE_WIDTH = 64
_OPTIONS = keywords(ResNet) - {"block", "layers"} | {"width", "in_chans", "weights", "progress"}


class WidthResNet(ResNet):
    """A ResNet whose stages have `width * (1, 2, 4, 8)` planes, with torchvision's key names.

    Args:
        block: `BasicBlock` or `Bottleneck`.
        layers: blocks per stage.
        width: channels of the stem and planes of the first stage (64 in the paper).
        num_classes: outputs of `fc`.
        **kwargs: torchvision's other options.
    """

    def __init__(self, block, layers, width: int, num_classes: int = 1000, **kwargs: Any):
        self.width = width
        super().__init__(block, layers, num_classes=num_classes, **kwargs)
        self.fc = nn.Linear(self.inplanes, num_classes)

    def _make_layer(self, block, planes, blocks, stride=1, dilate=False):
        if not hasattr(self, "layer1"):
            # torchvision has just made a stem of 64; its initialisation is still to come
            self.inplanes = self.width
            self.conv1 = _stem(3, self.width)
            self.bn1 = self._norm_layer(self.width)
        return super()._make_layer(
            block, planes * self.width // _BASE_WIDTH, blocks, stride, dilate
        )


def _stem(channels: int, width: int) -> nn.Conv2d:
    return nn.Conv2d(channels, width, kernel_size=7, stride=2, padding=3, bias=False)


def _build(
    name: str, block, layers: list[int], width: int = _BASE_WIDTH, in_chans: int = 3, **kwargs: Any
) -> ResNet:
    """A ResNet whose stem takes images of `in_chans` channels."""
    if in_chans == 3:
        return _of_colours(name, block, layers, width, **kwargs)
    if kwargs.pop("weights", None) is not None:
        raise ConfigError(
            f"backbone.kwargs.weights: torchvision's are for 3 channels, not {in_chans}; remove "
            "one of the two"
        )
    net = _of_colours(name, block, layers, width, **kwargs)
    net.conv1 = _stem(in_chans, net.conv1.out_channels)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    return net


def _of_colours(name: str, block, layers: list[int], width: int, **kwargs: Any) -> ResNet:
    check_kwargs(name, kwargs, _OPTIONS)
    if not isinstance(width, int) or isinstance(width, bool) or width < 1:
        raise ConfigError(f"backbone.kwargs.width={width!r}: must be a positive integer")
    if width == _BASE_WIDTH:
        return getattr(tv, name)(**kwargs)
    if kwargs.pop("weights", None) is not None:
        raise ConfigError(
            f"backbone.kwargs.weights: torchvision's have width {_BASE_WIDTH}, not {width}; "
            "remove one of the two"
        )
    kwargs.pop("progress", None)
    return WidthResNet(block, layers, width, **kwargs)


def resnet18(**kwargs: Any) -> ResNet:
    """ResNet-18; `width` scales all stages, `in_chans` are the images' channels."""
    return _build("resnet18", BasicBlock, [2, 2, 2, 2], **kwargs)


def resnet50(**kwargs: Any) -> ResNet:
    """ResNet-50; `width` scales all stages, `in_chans` are the images' channels."""
    return _build("resnet50", Bottleneck, [3, 4, 6, 3], **kwargs)
