# SPDX-License-Identifier: MIT
"""The crops of `crop_of` on uint8 tensors: the same boxes, Pillow's pixels, four times as fast.

torch resizes bytes with vector instructions and, with antialiasing, by Pillow's weights. Its fixed
point numbers have fewer bits, so that a level may be off by two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import transforms as T
from torchvision.transforms import functional as TF

from solo.data.datasets.images import WorkerError
from solo.data.views.augmentation_keys import checked_augmentation
from solo.data.views.batched.crop import RATIO, ResizedCrop, crop_boxes, rows_come_first


def tensor_crop_of(cfg: Mapping[str, Any]) -> Callable[[Tensor], Tensor]:
    """The first step of the pipeline of one entry, from (3, H, W) uint8 to a square.

    For the same state of torch's generator it cuts out the box that `crop_of` does.
    """
    entry = checked_augmentation(cfg)
    size, rrc = entry["crop_size"], entry["rrc"]
    if "padding" in entry:
        return PaddedCrop(size, padding=entry["padding"])
    if not rrc["enabled"]:
        return TensorResize(size)
    scale = (rrc["crop_min_scale"], rrc["crop_max_scale"])
    return TensorResizedCrop(size, scale, rrc["fallback"])


class PaddedCrop(T.RandomCrop):
    """torchvision's, which names the key where an image is too small for it."""

    def forward(self, img: Any) -> Any:
        """A square of `size` pixels, somewhere in the padded image.

        Raises:
            WorkerError: the image is smaller than that.
        """
        try:
            return super().forward(img)
        except ValueError as error:
            raise WorkerError(
                f"augmentations: padding={self.padding} does not make an image large enough for "
                f"crop_size={self.size[0]} ({error}). Take a smaller crop_size, more padding, or "
                "rrc in its place."
            ) from error


def random_fallback_box(image: Any, scale: Sequence[float], ratio: Sequence[float]) -> list[int]:
    """Top, left, height and width of a RandomResizedCrop whose way out lies at a random place.

    torchvision takes the same central box whenever no try fits, which for long, narrow images is
    most of the time; their views are then equal.

    Args:
        image: PIL image or tensor (3, H, W).
        scale: smallest and largest share of the image's area.
        ratio: not used, it is that of torchvision's default.
    """
    _, height, width = TF.get_dimensions(image)
    boxes = crop_boxes(torch.rand(1, ResizedCrop.draws), height, width, tuple(scale), "random")
    return [int(side) for side in boxes]


class RandomFallbackCrop(T.RandomResizedCrop):
    """torchvision's RandomResizedCrop with `random_fallback_box`."""

    get_params = staticmethod(random_fallback_box)


class TensorResizedCrop:
    """Random resized crop of a tensor image, by the law of torchvision's.

    Args:
        size: side of the result in pixels.
        scale: smallest and largest share of the image's area.
        fallback: see `solo.data.views.batched.crop.crop_boxes`.
    """

    def __init__(self, size: int, scale: tuple[float, float], fallback: str = "center"):
        self.size, self.scale, self.fallback = size, scale, fallback

    def __call__(self, image: Tensor) -> Tensor:
        law = RandomFallbackCrop if self.fallback == "random" else T.RandomResizedCrop
        top, left, height, width = law.get_params(image, list(self.scale), list(RATIO))
        part = image[:, top : top + height, left : left + width]
        return resized(part, (self.size, self.size))

    def __repr__(self) -> str:
        law = f"scale={self.scale}, fallback={self.fallback}"
        return f"{type(self).__name__}(size={self.size}, {law})"


class TensorResize:
    """The centre of an image whose shorter side is brought to `size` pixels: a square."""

    def __init__(self, size: int):
        self.size = size

    def __call__(self, image: Tensor) -> Tensor:
        height, width = image.shape[1:]
        short = min(height, width)
        sides = int(self.size * height / short), int(self.size * width / short)
        return TF.center_crop(resized(image, sides), [self.size, self.size])

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
