# SPDX-License-Identifier: MIT
"""Random augmentations as DALI operators; to be used where conditionals are enabled.

Images are (H, W, 3) uint8. What is drawn, and what it does to an image, follows torchvision on PIL
images, see `geometry` and `colour`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from nvidia.dali import fn, types
from nvidia.dali.pipeline import do_not_convert

from solo.data.catalogue import pretrain_statistics
from solo.data.dali import colour, geometry
from solo.data.views.augmentation_keys import STRENGTHS, checked_augmentation
from solo.data.views.batched.colour import ORDERS
from solo.data.views.batched.filters import SIGMA
from solo.errors import ConfigError


class UnsupportedByDALI(ConfigError, NotImplementedError):
    """An augmentation that DALI does not have."""


class RandomGrayScaleConversion:
    """Drop the colour with probability `prob`; three equal channels remain.

    Args:
        prob: probability.
        device: "cpu" or "gpu", where the operators run.
    """

    def __init__(self, prob: float = 0.2, device: str = "gpu"):
        self.prob, self.device = prob, device

    def __call__(self, images):
        do = fn.random.coin_flip(probability=self.prob, dtype=types.DALIDataType.BOOL)
        if do:
            out = colour.grey(images)
        else:
            out = images
        return out

    def __repr__(self) -> str:
        return f"{type(self).__name__}(prob={self.prob})"


class RandomColorJitter:
    """Change brightness, contrast, saturation and hue with probability `prob`, in random order.

    Args:
        brightness: factor drawn from [max(0, 1 - brightness), 1 + brightness].
        contrast: likewise.
        saturation: likewise.
        hue: rotation drawn from [-hue, hue], in turns (0.5 is the opposite colour).
        prob: probability.
        device: "cpu" or "gpu", where the operators run.
    """

    def __init__(
        self,
        brightness: float,
        contrast: float,
        saturation: float,
        hue: float,
        prob: float = 0.8,
        device: str = "gpu",
    ):
        self.brightness = self._around_one(brightness)
        self.contrast = self._around_one(contrast)
        self.saturation = self._around_one(saturation)
        self.hue = [-360 * hue, 360 * hue]  # in degrees, as solo-learn has it
        self.prob, self.device = prob, device

    @staticmethod
    def _around_one(strength: float) -> list[float]:
        return [max(0.0, 1 - strength), 1 + strength]

    @do_not_convert
    def drawn(self):
        """Order (int32 scalar), factors (3,) and turn of the hue of an image."""
        order = fn.cast(fn.random.uniform(values=list(range(len(ORDERS)))), dtype=types.INT32)
        u = fn.random.uniform(range=[0.0, 1.0], shape=[4])
        limits = [self.brightness, self.contrast, self.saturation, [h / 360 for h in self.hue]]
        low, high = (np.float32([pair[side] for pair in limits]) for side in (0, 1))
        values = types.Constant(low) + types.Constant(high - low) * u
        return order, values[:3], values[3]

    def __call__(self, images):
        do = fn.random.coin_flip(probability=self.prob, dtype=types.DALIDataType.BOOL)
        if do:
            out = colour.jittered(images, *self.drawn(), hue=self.hue[1] > 0)
        else:
            out = images
        return out

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(brightness={self.brightness}, contrast={self.contrast}, "
            f"saturation={self.saturation}, hue={self.hue}, prob={self.prob})"
        )


class RandomGaussianBlur:
    """Pillow's blur with a sigma drawn from U(0.1, 2.0) with probability `prob`.

    Args:
        prob: probability.
        window_size: accepted because solo-learn has it; Pillow's kernel has 13 pixels at most.
        device: "cpu" or "gpu", where the operators run.
    """

    def __init__(self, prob: float = 0.5, window_size: int = 23, device: str = "gpu"):
        self.prob, self.window_size, self.device = prob, window_size, device

    def __call__(self, images):
        do = fn.random.coin_flip(probability=self.prob, dtype=types.DALIDataType.BOOL)
        if do:
            out = colour.blurred(images, fn.random.uniform(range=list(SIGMA)))
        else:
            out = images
        return out

    def __repr__(self) -> str:
        return f"{type(self).__name__}(prob={self.prob}, window_size={self.window_size})"


class RandomSolarize:
    """Invert the pixels from `threshold` up with probability `prob`.

    Args:
        threshold: first value that is inverted.
        prob: probability.
    """

    def __init__(self, threshold: int = 128, prob: float = 0.0):
        self.threshold, self.prob = threshold, prob

    def __call__(self, images):
        do = fn.random.coin_flip(probability=self.prob, dtype=types.DALIDataType.BOOL)
        if do:
            bright = images >= self.threshold
            out = types.Constant(255).uint8() * bright - images * bright + images * (bright ^ True)
            out = fn.cast(out, dtype=types.UINT8)
        else:
            out = images
        return out

    def __repr__(self) -> str:
        return f"{type(self).__name__}(threshold={self.threshold}, prob={self.prob})"


class AugWrapper:
    """One augmentation pipeline: crop, colour operations, flip and normalisation.

    Args:
        steps: operators from decoded images to crops of one size.
        flip: probability of a horizontal flip.
        mean: of the channels, for pixels in [0, 1].
        std: likewise.
        device: "cpu" or "gpu", where the operators run.
    """

    def __init__(self, steps, flip, mean, std, device):
        self.steps, self.flip, self.device = steps, flip, device
        self.mean, self.std = [255 * m for m in mean], [255 * s for s in std]

    def __call__(self, images):
        """(H, W, 3) uint8 images to (3, crop, crop) float."""
        for step in self.steps:
            images = step(images)
        return fn.crop_mirror_normalize(
            images,
            device=self.device,
            dtype=types.FLOAT,
            output_layout="CHW",
            mean=self.mean,
            std=self.std,
            mirror=fn.random.coin_flip(probability=self.flip),
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(str, self.steps))}, flip={self.flip})"


class _Crop:
    """Random resized crop.

    Args:
        size: side of the result in pixels.
        rrc: the checked section `rrc` of an entry.
    """

    def __init__(self, size: int, rrc: Mapping[str, Any]):
        self.size, self.fallback = size, rrc["fallback"]
        self.scale = (rrc["crop_min_scale"], rrc["crop_max_scale"])

    def __call__(self, images):
        u = geometry.drawn_box()
        return geometry.resized_crop(
            images, u, self.size, self.scale, self.fallback, interpolation=types.INTERP_CUBIC
        )

    def __repr__(self) -> str:
        return f"Crop({self.size}, scale={self.scale}, fallback={self.fallback})"


class _Resize:
    """The centre of an image whose shorter side is brought to `size` pixels."""

    def __init__(self, size: int):
        self.size = size

    def __call__(self, images):
        images = geometry.shorter_side_resized(images, self.size, types.INTERP_CUBIC)
        return geometry.center_crop(images, self.size)

    def __repr__(self) -> str:
        return f"Resize({self.size})"


def build_transform_pipeline_dali(dataset: str, cfg: Mapping[str, Any], dali_device: str):
    """The augmentation pipeline of one entry of `augmentations`, in DALI operators.

    Args:
        dataset: decides mean and standard deviation, see
            `solo.data.pretrain_dataloader.build_transform_pipeline`.
        cfg: the entry, see `solo.data.views.augmentation_keys`.
        dali_device: "cpu" or "gpu", where the operators run.

    Raises:
        ConfigError: the entry has an unknown key or a bad value.
        NotImplementedError: it asks for equalization (the error is a ConfigError too).
    """
    entry = checked_augmentation(cfg)
    if "padding" in entry or entry["rotation"]["prob"]:
        raise ConfigError("augmentations: DALI has no padding and no rotation; use image_folder.")
    if entry["equalization"]["prob"]:
        raise UnsupportedByDALI(
            "augmentations: DALI has no equalization; set equalization.prob to 0 or use "
            "data.format=image_folder."
        )
    rrc, jitter = entry["rrc"], entry["color_jitter"]
    size = entry["crop_size"]
    steps: list[Any] = [_Crop(size, rrc) if rrc["enabled"] else _Resize(size)]
    if jitter["prob"]:
        strengths = [jitter[strength] for strength in STRENGTHS]
        steps.append(RandomColorJitter(*strengths, prob=jitter["prob"], device=dali_device))
    if prob := entry["grayscale"]["prob"]:
        steps.append(RandomGrayScaleConversion(prob=prob, device=dali_device))
    if prob := entry["gaussian_blur"]["prob"]:
        steps.append(RandomGaussianBlur(prob=prob, device=dali_device))
    if prob := entry["solarization"]["prob"]:
        steps.append(RandomSolarize(prob=prob))
    mean, std = pretrain_statistics(dataset, entry)
    return AugWrapper(steps, entry["horizontal_flip"]["prob"], mean, std, dali_device)
