# SPDX-License-Identifier: MIT
"""Feature maps of base path and conditional path for chosen images (CDG, Fig. 9)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from solo.errors import ConfigError, DataError, did_you_mean
from sparse_ext.gating.encoder import Gating, choose, gating_of
from sparse_ext.gating.methods.spatial.conv import SpatialConv2d

if TYPE_CHECKING:
    import numpy as np

SECOND = "layer1.0.conv1"  # the encoder's second convolution, as in the paper


class Maps(NamedTuple):
    """What one branch makes of the images in one channel of one layer, (N, H, W) each.

    Attributes:
        base: output of the base path, computed everywhere.
        conditional: output of the conditional path where it is open, else 0.
        total: their sum, the layer's output.
    """

    base: Tensor
    conditional: Tensor
    total: Tensor


def feature_maps(
    backbone: nn.Module, images: Tensor, layer: str = SECOND, channel: int | None = None
) -> tuple[dict[str, Maps], int]:
    """Maps of every branch of a CGNet or CDG encoder, which is in eval mode afterwards.

    Args:
        backbone: the encoder.
        images: (N, 3, H, W), as evaluation prepares them.
        layer: name of a gated convolution.
        channel: output channel; by default the one whose output varies most, in the first branch.

    Returns:
        maps by branch, and the channel.

    Raises:
        ConfigError: the encoder has no such layer or channel.
    """
    gating = _spatial(backbone)
    conv = _layer(gating, layer)
    asked, found = gating.context.evaluation, {}
    for branch in gating.config.BRANCHES:
        found[branch] = _paths(choose(backbone, branch), conv, images)
    choose(backbone, asked)
    gating.context.collect()  # these images are no evaluation set
    if channel is None:
        channel = int(next(iter(found.values())).total.std(dim=(2, 3)).mean(0).argmax())
    if not 0 <= channel < conv.out_channels:
        raise ConfigError(
            f"--channel {channel}: {layer} has channels 0 to {conv.out_channels - 1}."
        )
    return {b: Maps(*(part[:, channel] for part in maps)) for b, maps in found.items()}, channel


@torch.no_grad()
def _paths(backbone: nn.Module, conv: SpatialConv2d, images: Tensor) -> Maps:
    inputs: list[Tensor] = []
    hook = conv.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    try:
        backbone.eval()(images)
    finally:
        hook.remove()
    base, conditional, m = conv.paths(inputs[0])
    return Maps(base, conditional * m, base + conditional * m)


def _spatial(backbone: nn.Module) -> Gating:
    gating = gating_of(backbone)
    if gating is None or not any(isinstance(x, SpatialConv2d) for x in gating.layers.values()):
        what = "has no gates" if gating is None else f"is gated by {gating.config.name}"
        raise ConfigError(
            f"Feature maps of base and conditional path need gating=cgnet or gating=cdg, and this "
            f"encoder {what}: leave out --images."
        )
    return gating


def _layer(gating: Gating, name: str) -> SpatialConv2d:
    if name not in gating.layers:
        raise ConfigError(
            f"--layer '{name}' is no gated convolution of this encoder. "
            f"{did_you_mean(name, gating.layers)}"
        )
    return gating.layers[name]  # type: ignore[return-value]


def load_images(
    files: Sequence[Path], trained: Mapping[str, Any]
) -> tuple[list[np.ndarray], Tensor]:
    """Images as they are, and as evaluation shows them to the encoder of a run.

    Args:
        files: pictures.
        trained: configuration of the run.

    Returns:
        (H, W, 3) uint8 each; (N, 3, size, size).

    Raises:
        DataError: a file is missing or no image.
    """
    import numpy as np

    from solo.data.classification_dataloader import folder_transform
    from solo.data.datasets.images import readers
    from solo.data.shown import reading_of

    transform, (read, _) = folder_transform(trained), readers(**reading_of(trained))
    pictures, tensors = [], []
    for file in files:
        try:
            picture = read(file)
        except DataError as error:
            raise DataError(f"--images: {error}") from error
        tensors.append(transform(picture))
        pictures.append(np.asarray(picture))
    return pictures, torch.stack(tensors)


def closed(maps: Mapping[str, Maps]) -> dict[str, float]:
    """Share of places of each branch's conditional path that are closed."""
    return {branch: float((one.conditional == 0).float().mean()) for branch, one in maps.items()}
