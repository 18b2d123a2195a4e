# SPDX-License-Identifier: MIT
"""Finding the residual blocks of an encoder, and the convolutions in them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from solo.errors import ConfigError

BLOCKS = (BasicBlock, Bottleneck)


def residual_blocks(backbone: nn.Module, method: str) -> dict[str, nn.Module]:
    """torchvision's residual blocks of `backbone` by name.

    Args:
        backbone: the encoder.
        method: name of the gating method, for the message.

    Raises:
        ConfigError: it has none, or they have convolutions with groups.
    """
    found = {name: m for name, m in backbone.named_modules() if type(m) in BLOCKS}
    if not found:
        raise ConfigError(
            f"gating={method} gates residual blocks (BasicBlock, Bottleneck), and "
            f"{type(backbone).__name__} has none: use backbone.name=resnet18 or resnet50."
        )
    for name, block in found.items():
        if any(m.groups > 1 for m in block.modules() if isinstance(m, nn.Conv2d)):
            raise ConfigError(f"gating={method} is for convolutions without groups: see {name}.")
    return found


def conv_norm_pairs(block: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of each convolution of a block and of the norm behind it; the shortcut's last."""
    for index in range(1, 3 if isinstance(block, BasicBlock) else 4):
        yield f"conv{index}", f"bn{index}"
    if isinstance(block.downsample, nn.Sequential):
        yield "downsample.0", "downsample.1"
