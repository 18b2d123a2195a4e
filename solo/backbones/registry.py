# SPDX-License-Identifier: MIT
"""The table of encoder names."""

from __future__ import annotations

from collections.abc import Callable

from solo.backbones import alexnet, convnext, poolformer, resnet, swin, vgg, vit, wide_resnet

_FAMILIES = (resnet, vit, swin, poolformer, convnext, wide_resnet, alexnet, vgg)

#: name -> builder(method, **kwargs); any other name is looked up in timm by `get_builder`.
BACKBONES: dict[str, Callable] = {
    name: getattr(family, name) for family in _FAMILIES for name in family.__all__
}
