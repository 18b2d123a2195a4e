# SPDX-License-Identifier: MIT
"""What the layers of an encoder see: second moments of their inputs over calibration images.

A convolution is a linear layer over its unfolded input. A weight matrix here has a row per output
channel and its columns in the order (kernel row, kernel column, input channel), so that N:M groups
and the rows of a block are consecutive columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: samples (image positions) per input of a layer that its second moments are taken from
SAMPLES_PER_INPUT = 16


def matrix(weight: Tensor, groups: int = 1) -> Tensor:
    """A weight as matrices, one per channel group: (groups, C_out / groups, kh * kw * C_in).

    >>> matrix(torch.arange(8.0).reshape(1, 2, 2, 2)).tolist()  # channels alternate
    [[[0.0, 4.0, 1.0, 5.0, 2.0, 6.0, 3.0, 7.0]]]
    """
    rows = weight.movedim(1, -1).reshape(weight.shape[0], -1)
    return rows.reshape(groups, weight.shape[0] // groups, -1)


def weight_of(rows: Tensor, shape: Sequence[int]) -> Tensor:
    """Inverse of `matrix`: a contiguous weight of `shape`."""
    folded = rows.reshape(shape[0], *shape[2:], shape[1])
    return folded.movedim(-1, 1).contiguous()


def samples(layer: Any, x: Tensor) -> Tensor:
    """The input of a layer as the matrix that its weight is multiplied with.

    Args:
        layer: a linear layer or a 2-D convolution.
        x: its input, (N, ..., C_in) for a linear layer, (N, C_in, H, W) for a convolution.

    Returns:
        (groups, samples, kh * kw * C_in / groups) in float32, columns ordered as in `matrix`.
    """
    if isinstance(layer, nn.Linear):
        return x.reshape(1, -1, x.shape[-1]).float()
    kernel, padding = layer.kernel_size, layer.padding
    if isinstance(padding, str):
        padding = (
            (0, 0)
            if padding == "valid"
            else tuple(d * (k - 1) // 2 for d, k in zip(layer.dilation, kernel, strict=True))
        )
    if layer.padding_mode != "zeros":
        x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]), mode=layer.padding_mode)
        padding = (0, 0)
    columns = F.unfold(x.float(), kernel, layer.dilation, padding, layer.stride)
    positions, groups = columns.shape[-1], layer.groups
    split = columns.reshape(len(x), groups, -1, kernel[0] * kernel[1], positions)
    return split.permute(1, 0, 4, 3, 2).reshape(groups, len(x) * positions, -1)


class Moments:
    """Sum of x x^T over the inputs x of a layer.

    Args:
        layer: whose inputs these are.
        images: how many images there will be; with it positions are drawn so that a layer sees
            about `SAMPLES_PER_INPUT` samples per input, None = all positions count.
        seed: of the positions.

    Attributes:
        second: (groups, d, d) float32, the mean of x x^T over the samples seen.
        count: samples seen.
    """

    def __init__(self, layer: Any, images: int | None = None, seed: int = 0) -> None:
        self.layer = layer
        groups, d = getattr(layer, "groups", 1), layer.weight[0].numel()
        self.second = torch.zeros(groups, d, d, device=layer.weight.device)
        self.count = 0
        self._per_image = None if images is None else max(1, -(-SAMPLES_PER_INPUT * d // images))
        self._generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Count a batch of inputs (N, ...) of the layer."""
        found = samples(self.layer, x)
        wanted = found.shape[1] if self._per_image is None else self._per_image * len(x)
        if wanted < found.shape[1]:
            chosen = torch.randperm(found.shape[1], generator=self._generator)[:wanted]
            found = found[:, chosen.to(found.device)]
        total = self.count + found.shape[1]
        self.second.mul_(self.count / total)
        self.second.baddbmm_(found.transpose(1, 2), found, alpha=1 / total)
        self.count = total


class _Seen(Exception):
    """All layers of this pass have had their input; what comes behind them is not needed."""


@torch.no_grad()
def execution_order(encoder: nn.Module, layers: dict[str, Any], image: Tensor) -> list[str]:
    """Names of `layers` in the order in which the encoder uses them; unused ones are left out.

    Args:
        encoder: images (N, 3, H, W) to features.
        layers: its layers by name.
        image: one image (1, 3, H, W).
    """
    order: list[str] = []
    hooks = [
        layer.register_forward_pre_hook(lambda *_, name=name: order.append(name))
        for name, layer in layers.items()
    ]
    try:
        encoder(image)
    finally:
        for hook in hooks:
            hook.remove()
    return list(dict.fromkeys(order))


def portions(layers: dict[str, Any], limit: int = 1 << 30) -> Iterator[list[str]]:
    """`layers` in portions whose second moments take at most `limit` bytes together (or one layer).

    Args:
        layers: in the order of execution.
        limit: bytes.
    """
    portion: list[str] = []
    used = 0
    for name, layer in layers.items():
        size = 4 * getattr(layer, "groups", 1) * layer.weight[0].numel() ** 2
        if portion and used + size > limit:
            yield portion
            portion, used = [], 0
        portion.append(name)
        used += size
    if portion:
        yield portion


@torch.no_grad()
def moments(
    encoder: nn.Module,
    layers: dict[str, Any],
    batches: Iterable[Tensor],
    images: int | None = None,
    seed: int = 0,
) -> dict[str, Moments]:
    """Second moments of the inputs of some layers, in one pass over the images.

    The pass ends for each batch at the last of the layers.

    Args:
        encoder: in evaluation mode.
        layers: which, by name, in the order of execution.
        batches: calibration images (N, 3, H, W), already normalised.
        images: how many there are in all (see `Moments`).
        seed: of drawn positions.
    """
    found = {name: Moments(layer, images, seed) for name, layer in layers.items()}
    last = next(reversed(layers))

    def take(layer: nn.Module, args: tuple, name: str) -> None:
        found[name].add(args[0].detach())
        if name == last:
            raise _Seen

    hooks = [
        layer.register_forward_pre_hook(lambda layer, args, name=name: take(layer, args, name))
        for name, layer in layers.items()
    ]
    try:
        for batch in batches:
            try:
                encoder(batch)
            except _Seen:
                continue
    finally:
        for hook in hooks:
            hook.remove()
    return found
