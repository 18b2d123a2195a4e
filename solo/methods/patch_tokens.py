# SPDX-License-Identifier: MIT
"""The patch tokens of a vision transformer: hidden ones, chosen ones, and all that come out.

Everything goes through the encoder's ordinary call, with hooks on timm's parts, so that masks,
meters and compilation see what they always see.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from solo.errors import ConfigError


class Encoded(NamedTuple):
    """What an encoder makes of images.

    Attributes:
        feats: (N, F) what evaluation sees.
        patches: (N, L, D) normalised patch tokens, without class and register tokens.
    """

    feats: Tensor
    patches: Tensor


class MaskToken(nn.Module):
    """The learned token that stands for a hidden patch.

    Args:
        dim: dimension D of the encoder's tokens.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.token = nn.Parameter(nn.init.trunc_normal_(torch.zeros(dim), std=0.02))

    def forward(self, patches: Tensor, hidden: Tensor) -> Tensor:
        """Replace the hidden ones of patches (N, ..., D) by the token; `hidden` is (N, L) bool."""
        where = hidden.view(*patches.shape[:-1], 1)
        return torch.where(where, self.token.to(patches.dtype), patches)


def require_vit(backbone: nn.Module, method: str, name: str) -> None:
    """Refuse an encoder that has no patch tokens.

    Raises:
        ConfigError: `backbone` is not one of timm's vision transformers.
    """
    from timm.models.vision_transformer import VisionTransformer

    if not isinstance(backbone, VisionTransformer):
        raise ConfigError(
            f"{method} learns from patch tokens, and backbone.name='{name}' has none: use "
            "vit_tiny, vit_small, vit_base or vit_large, or one of timm's vision transformers"
        )


def grid_of(backbone: nn.Module, images: Tensor) -> tuple[int, int]:
    """Rows and columns of patches that `backbone` cuts images (N, C, H, W) into."""
    height, width = backbone.patch_embed.patch_size
    return images.shape[-2] // height, images.shape[-1] // width


def encode(
    backbone: nn.Module,
    images: Tensor,
    hidden: Tensor | None = None,
    mask_token: MaskToken | None = None,
    kept: Tensor | None = None,
) -> Encoded:
    """Images through a vision transformer of timm.

    Args:
        backbone: the encoder.
        images: (N, C, H, W).
        hidden: (N, L) bool, patches that `mask_token` replaces before positions are added.
        mask_token: what stands for them.
        kept: (N, K) the patches that go on after positions are added, all others are left out.
    """
    out: list[Tensor] = []

    def hide(_module: nn.Module, _inputs: Any, patches: Tensor) -> Tensor:
        return mask_token(patches, hidden)  # type: ignore[misc]

    def keep(_module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        (tokens,) = inputs
        prefix = backbone.num_prefix_tokens
        index = kept[..., None].expand(-1, -1, tokens.shape[-1])  # type: ignore[index]
        return (torch.cat([tokens[:, :prefix], tokens[:, prefix:].gather(1, index)], dim=1),)

    def remember(_module: nn.Module, _inputs: Any, tokens: Tensor) -> None:
        out.append(tokens)

    with ExitStack() as stack:
        if hidden is not None:
            stack.enter_context(_hook(backbone.patch_embed.register_forward_hook(hide)))
        if kept is not None:
            stack.enter_context(_hook(backbone.norm_pre.register_forward_pre_hook(keep)))
        stack.enter_context(_hook(backbone.norm.register_forward_hook(remember)))
        feats = backbone(images)
    return Encoded(feats, out[0][:, backbone.num_prefix_tokens :])


@contextmanager
def _hook(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()
