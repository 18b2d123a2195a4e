# SPDX-License-Identifier: MIT
"""The crops of `crop_of` on uint8 tensors: the same boxes, Pillow's pixels, four times as fast.

torch resizes bytes with vector instructions and, with antialiasing, by Pillow's weights. Its fixed
point numbers have fewer bits, so that a level may be off by two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import transforms as T

from solo.data.views.augmentation_keys import checked_augmentation
from solo.data.views.batched.crop import RATIO, rows_come_first


def tensor_crop_of(cfg: Mapping[str, Any]) -> Callable[[Tensor], Tensor]:
    """The first step of the pipeline of one entry, from (3, H, W) to (3, height, width) uint8.

    For the same state of torch's generator it cuts out the box that `crop_of` does.
    """
    entry = checked_augmentation(cfg)
    size, rrc = entry["crop_size"], entry["rrc"]
    if "padding" in entry:
        return T.RandomCrop(size, padding=entry["padding"])
    if not rrc["enabled"]:
        return TensorResize(size)
    return TensorResizedCrop(size, (rrc["crop_min_scale"], rrc["crop_max_scale"]))


class TensorResizedCrop:
    """RandomResizedCrop.

    Args:
        size: side of the result in pixels.
        scale: smallest and largest share of the image's area.
    """

    def __init__(self, size: int, scale: tuple[float, float]):
        self.size, self.scale = size, scale

    def __call__(self, image: Tensor) -> Tensor:
        box = T.RandomResizedCrop.get_params(image, list(self.scale), list(RATIO))
        top, left, height, width = box
        part = image[:, top : top + height, left : left + width]
        return resized(part, (self.size, self.size))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(size={self.size}, scale={self.scale})"


class TensorResize:
    """The whole image, its shorter side brought to `size` pixels."""

    def __init__(self, size: int):
        self.size = size

    def __call__(self, image: Tensor) -> Tensor:
        height, width = image.shape[1:]
        short = min(height, width)
        return resized(image, (int(self.size * height / short), int(self.size * width / short)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(size={self.size})"


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Bicubic with antialiasing, in Pillow's order of the two axes.

    Args:
        image: (3, H, W) uint8.
        size: height and width of the result.
    """
    height, width = image.shape[1:]
    swap = bool(rows_come_first(height, width, size))
    batch = image[None].mT if swap else image[None]
    batch = batch.contiguous(memory_format=torch.channels_last)  # torch's fast path
    size = size[::-1] if swap else size
    done = F.interpolate(batch, size=size, mode="bicubic", antialias=True)
    return (done.mT if swap else done)[0].contiguous()
