# SPDX-License-Identifier: MIT
"""PoolFormer (Yu et al., "MetaFormer is actually what you need for vision", 2022)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from solo.backbones.options import check_kwargs, keywords

__all__ = [
    "poolformer_m36",
    "poolformer_m48",
    "poolformer_s12",
    "poolformer_s24",
    "poolformer_s36",
]


class PatchEmbed(nn.Module):
    """A strided convolution: (N, in_chans, H, W) -> (N, embed_dim, H / stride, W / stride)."""

    def __init__(
        self,
        patch_size: int = 16,
        stride: int = 16,
        padding: int = 0,
        in_chans: int = 3,
        embed_dim: int = 768,
        norm_layer: Callable[[int], nn.Module] | None = None,
    ):
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, stride, padding)
        self.norm = norm_layer(embed_dim) if norm_layer else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Embed patches: images (N, C, H, W) to a map of patch features."""
        return self.norm(self.proj(x))


class LayerNormChannel(nn.Module):
    """Layer norm over the channels of (N, C, H, W) at each position."""

    def __init__(self, num_channels: int, eps: float = 1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the channels at every position of a map (N, C, H, W)."""
        variance, mean = torch.var_mean(x, dim=1, keepdim=True, correction=0)
        x = (x - mean) / torch.sqrt(variance + self.eps)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class GroupNorm(nn.GroupNorm):
    """Group norm with one group: over channels and positions together."""

    def __init__(self, num_channels: int, **kwargs: Any):
        super().__init__(1, num_channels, **kwargs)


class Pooling(nn.Module):
    """The token mixer: average of the neighbourhood minus the token itself."""

    def __init__(self, pool_size: int = 3):
        super().__init__()
        self.pool = nn.AvgPool2d(pool_size, 1, pool_size // 2, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W), same shape out; the residual connection adds the token back."""
        return self.pool(x) - x


class Mlp(nn.Module):
    """Two 1x1 convolutions with an activation between."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        drop: float = 0.0,
    ):
        super().__init__()
        hidden_features = hidden_features or in_features
        self.fc1 = nn.Conv2d(in_features, hidden_features, 1)
        self.act = act_layer()
        self.fc2 = nn.Conv2d(hidden_features, out_features or in_features, 1)
        self.drop = nn.Dropout(drop)
        for layer in (self.fc1, self.fc2):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_features, H, W) -> (N, out_features, H, W)."""
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class PoolFormerBlock(nn.Module):
    """Pooling and MLP, each with normalisation before and a scaled residual branch."""

    def __init__(
        self,
        dim: int,
        pool_size: int = 3,
        mlp_ratio: float = 4.0,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        norm_layer: Callable[[int], nn.Module] = GroupNorm,
        drop: float = 0.0,
        drop_path: float = 0.0,
        use_layer_scale: bool = True,
        layer_scale_init_value: float = 1e-5,
    ):
        super().__init__()
        self.norm1 = norm_layer(dim)
        self.token_mixer = Pooling(pool_size)
        self.norm2 = norm_layer(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=act_layer, drop=drop)
        self.drop_path = StochasticDepth(drop_path, "row") if drop_path > 0 else nn.Identity()
        self.use_layer_scale = use_layer_scale
        if use_layer_scale:
            self.layer_scale_1 = nn.Parameter(torch.full((dim,), layer_scale_init_value))
            self.layer_scale_2 = nn.Parameter(torch.full((dim,), layer_scale_init_value))

    def forward(self, x: Tensor) -> Tensor:
        """(N, dim, H, W), same shape out."""
        scale_1 = self.layer_scale_1[:, None, None] if self.use_layer_scale else 1.0
        scale_2 = self.layer_scale_2[:, None, None] if self.use_layer_scale else 1.0
        x = x + self.drop_path(scale_1 * self.token_mixer(self.norm1(x)))
        return x + self.drop_path(scale_2 * self.mlp(self.norm2(x)))


def basic_blocks(
    dim: int, index: int, layers: Sequence[int], drop_path_rate: float = 0.0, **kwargs: Any
) -> nn.Sequential:
    """The blocks of stage `index`; `drop_path` grows linearly over the blocks of all stages."""
    start, last = sum(layers[:index]), max(sum(layers) - 1, 1)
    return nn.Sequential(
        *(
            PoolFormerBlock(dim, drop_path=drop_path_rate * (start + i) / last, **kwargs)
            for i in range(layers[index])
        )
    )


class PoolFormer(nn.Module):
    """PoolFormer: (N, 3, H, W) -> (N, num_classes), or (N, embed_dims[-1]) without classes.

    Args:
        layers: blocks in each of the four stages.
        embed_dims: channels of the stages.
        mlp_ratios: hidden over outer width of each stage's MLPs.
        num_classes: 0 for features.
        in_patch_size, in_stride, in_pad: patch embedding in front.
        down_patch_size, down_stride, down_pad: patch embedding between stages.
        drop_rate: dropout in the MLPs.
        drop_path_rate: stochastic depth of the last block; grows linearly up to there.
        use_layer_scale, layer_scale_init_value: learnt scale of the residual branches.
    """

    def __init__(
        self,
        layers: Sequence[int],
        embed_dims: Sequence[int] = (64, 128, 320, 512),
        mlp_ratios: Sequence[float] = (4, 4, 4, 4),
        pool_size: int = 3,
        norm_layer: Callable[[int], nn.Module] = GroupNorm,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        num_classes: int = 1000,
        in_patch_size: int = 7,
        in_stride: int = 4,
        in_pad: int = 2,
        down_patch_size: int = 3,
        down_stride: int = 2,
        down_pad: int = 1,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        use_layer_scale: bool = True,
        layer_scale_init_value: float = 1e-5,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.num_features = embed_dims[-1]
        self.patch_embed = PatchEmbed(in_patch_size, in_stride, in_pad, 3, embed_dims[0])
        network: list[nn.Module] = []
        for i, dim in enumerate(embed_dims):
            if i:
                patch = (down_patch_size, down_stride, down_pad)
                network.append(PatchEmbed(*patch, embed_dims[i - 1], dim))
            stage = basic_blocks(
                dim,
                i,
                layers,
                drop_path_rate,
                pool_size=pool_size,
                mlp_ratio=mlp_ratios[i],
                act_layer=act_layer,
                norm_layer=norm_layer,
                drop=drop_rate,
                use_layer_scale=use_layer_scale,
                layer_scale_init_value=layer_scale_init_value,
            )
            network.append(stage)
        self.network = nn.ModuleList(network)
        self.norm = norm_layer(self.num_features)
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int) -> None:
        """Put a fresh classifier, or none (0), behind the features."""
        self.num_classes = num_classes
        self.head: nn.Module = nn.Identity()
        if num_classes > 0:
            self.head = nn.Linear(self.num_features, num_classes)
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def get_classifier(self) -> nn.Module:
        """The classifier of the network, or an Identity where it has none."""
        return self.head

    def forward_embeddings(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) to the input of the first stage."""
        return self.patch_embed(x)

    def forward_tokens(self, x: Tensor) -> Tensor:
        """All stages: (N, embed_dims[0], H / 4, W / 4) -> (N, embed_dims[-1], H / 32, W / 32)."""
        for block in self.network:
            x = block(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) to features or logits."""
        x = self.norm(self.forward_tokens(self.forward_embeddings(x)))
        return self.head(x.mean([-2, -1]))


_SMALL, _MEDIUM = (64, 128, 320, 512), (96, 192, 384, 768)
# name: blocks per stage, channels, initial layer scale
_SIZES: dict[str, tuple] = {
    "poolformer_s12": ((2, 2, 6, 2), _SMALL, 1e-5),
    "poolformer_s24": ((4, 4, 12, 4), _SMALL, 1e-5),
    "poolformer_s36": ((6, 6, 18, 6), _SMALL, 1e-6),
    "poolformer_m36": ((6, 6, 18, 6), _MEDIUM, 1e-6),
    "poolformer_m48": ((8, 8, 24, 8), _MEDIUM, 1e-6),
}


def _build(name: str, **kwargs: Any) -> PoolFormer:
    check_kwargs(name, kwargs, keywords(PoolFormer) - {"layers", "embed_dims"})
    layers, dims, scale = _SIZES[name]
    options = {"num_classes": 0, "layer_scale_init_value": scale, **kwargs}
    return PoolFormer(layers, dims, **options)


def poolformer_s12(**kwargs: Any) -> PoolFormer:
    """PoolFormer-S12, 11.4 M parameters; options of `PoolFormer`."""
    return _build("poolformer_s12", **kwargs)


def poolformer_s24(**kwargs: Any) -> PoolFormer:
    """PoolFormer-S24, 20.9 M parameters; options of `PoolFormer`."""
    return _build("poolformer_s24", **kwargs)


def poolformer_s36(**kwargs: Any) -> PoolFormer:
    """PoolFormer-S36, 30.3 M parameters; options of `PoolFormer`."""
    return _build("poolformer_s36", **kwargs)


def poolformer_m36(**kwargs: Any) -> PoolFormer:
    """PoolFormer-M36, 55.4 M parameters; options of `PoolFormer`."""
    return _build("poolformer_m36", **kwargs)


def poolformer_m48(**kwargs: Any) -> PoolFormer:
    """PoolFormer-M48, 72.7 M parameters; options of `PoolFormer`."""
    return _build("poolformer_m48", **kwargs)
