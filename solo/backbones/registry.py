# SPDX-License-Identifier: MIT
"""The table of encoder names, which other packages may add to."""

from __future__ import annotations

from collections.abc import Callable

from solo.backbones import classic, convnext, poolformer, resnet, swin, vit, wide_resnet
from solo.registry import Registry

_FAMILIES = (resnet, vit, swin, poolformer, convnext, wide_resnet, classic)

#: name -> builder(method, **kwargs); any other name is looked up in timm by `get_builder`.
BACKBONES: Registry[Callable] = Registry(
    "backbone", {name: getattr(family, name) for family in _FAMILIES for name in family.__all__}
)


def register_backbone(name: str, builder: Callable | str) -> None:
    """Make an encoder known, so that `backbone: {name: NAME, kwargs: ...}` builds it.

    Args:
        name: what users write.
        builder: a function `builder(method, **kwargs)` that returns an `nn.Module` from images
            (N, 3, H, W) to features (N, `num_features`), with that width as its attribute; or
            where the function is: `my_package.my_encoders:my_encoder`.

    Raises:
        ConfigError: there is another encoder of that name.
    """
    BACKBONES.register(name, builder)
