# SPDX-License-Identifier: MIT
"""From a configuration to an encoder: builder, stem for small images, extensions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from solo import extensions
from solo.backbones.registry import BACKBONES
from solo.data.catalogue import known

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import nn


def get_builder(name: str) -> Callable[..., nn.Module]:
    """The function `builder(method, **kwargs)` that makes the encoder called `name`.

    Raises:
        ConfigError: neither we nor timm have an encoder of that name.
    """
    if name in BACKBONES:
        return BACKBONES[name]
    from solo.backbones.timm_models import timm_builder

    return timm_builder(name)


def build_encoder(cfg: DictConfig) -> nn.Module:
    """Build the encoder that `cfg` describes; its output is (N, `features_dim`).

    Args:
        cfg: reads `backbone.{name,kwargs,small_stem}`, `pretrain_method` or else `method` (ViTs
            differ by method), `data.dataset`, and the sections of the active extensions.

    Raises:
        ConfigError: unknown encoder or unknown option of it.
    """
    from omegaconf import OmegaConf

    name = cfg.backbone.name
    kwargs: Any = cfg.backbone.get("kwargs") or {}
    if OmegaConf.is_config(kwargs):
        kwargs = OmegaConf.to_container(kwargs, resolve=True)
    method = cfg.get("pretrain_method") or cfg.get("method")
    backbone = get_builder(name)(method, **kwargs)
    if name.startswith("resnet"):
        small = cfg.backbone.get("small_stem")
        adapt_resnet(backbone, known(cfg.data.dataset).small_stem if small is None else small)
    for extension in extensions.active(cfg):
        backbone = extension.patch_backbone(backbone, cfg)
    return backbone


def adapt_resnet(backbone: nn.Module, small_images: bool) -> None:
    """Take the classifier off a ResNet and, for 32x32 images, give it a 3x3 stem, in place.

    The padding of 2 (34x34 maps) is solo-learn's; published CIFAR figures depend on it.
    """
    from torch import nn

    backbone.fc = nn.Identity()
    stem = getattr(backbone, "conv1", None)
    if small_images and isinstance(stem, nn.Conv2d) and hasattr(backbone, "maxpool"):
        backbone.conv1 = nn.Conv2d(
            stem.in_channels, stem.out_channels, kernel_size=3, stride=1, padding=2, bias=False
        )
        backbone.maxpool = nn.Identity()


def input_channels(backbone: nn.Module) -> int:
    """Number of channels of the images that `backbone` takes: those of its first convolution."""
    from torch import nn

    convolutions = (m for m in backbone.modules() if isinstance(m, nn.Conv2d))
    first = next(convolutions, None)
    return 3 if first is None else first.in_channels


def features_dim(backbone: nn.Module) -> int:
    """Number of features that `backbone` puts out per image.

    Raises:
        ConfigError: the module does not say it.
    """
    # timm: the width before the classifier, which may differ from that of the last feature map
    for attribute in ("inplanes", "head_hidden_size", "num_features"):
        value = getattr(backbone, attribute, None)
        if isinstance(value, int):
            return value
    from solo.errors import ConfigError

    raise ConfigError(
        f"{type(backbone).__name__} does not state its number of features: "
        "set an integer attribute `num_features` on it"
    )
