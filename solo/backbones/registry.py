# SPDX-License-Identifier: MIT
"""The table of encoder names."""

from __future__ import annotations

from collections.abc import Callable

from solo.backbones import classic, convnext, poolformer, resnet, swin, vit, wide_resnet

_FAMILIES = (resnet, vit, swin, poolformer, convnext, wide_resnet, classic)

#: name -> builder(method, **kwargs); any other name is looked up in timm by `get_builder`.
BACKBONES: dict[str, Callable] = {
    name: getattr(family, name) for family in _FAMILIES for name in family.__all__
}
