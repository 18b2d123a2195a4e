# SPDX-License-Identifier: MIT
"""Random augmentations as DALI operators; to be used where conditionals are enabled.

Images are (H, W, 3) uint8. Brightness, contrast, saturation and hue are applied in DALI's fixed
order, not in torchvision's random one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nvidia.dali import fn, types

from solo.data.catalogue import IMAGENET_MEAN, IMAGENET_STD, PRETRAIN_STATS
from solo.data.views.augmentation_keys import STRENGTHS, checked_augmentation
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
            gray = fn.color_space_conversion(
                images, device=self.device, image_type=types.RGB, output_type=types.GRAY
            )
            out = fn.cat(gray, gray, gray, axis=2, device=self.device)
        else:
            out = images
        return out

    def __repr__(self) -> str:
        return f"{type(self).__name__}(prob={self.prob})"


def _drawn(limits):
    """A number per image, uniform between the two limits (DALI refuses an empty interval)."""
    low, high = limits
    return low if low == high else fn.random.uniform(range=limits)


class RandomColorJitter:
    """Change brightness, contrast, saturation and hue with probability `prob`.

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
        self.hue = [-360 * hue, 360 * hue]  # DALI counts in degrees
        self.prob, self.device = prob, device

    @staticmethod
    def _around_one(strength: float) -> list[float]:
        return [max(0.0, 1 - strength), 1 + strength]

    def __call__(self, images):
        do = fn.random.coin_flip(probability=self.prob, dtype=types.DALIDataType.BOOL)
        if do:
            out = fn.color_twist(
                images,
                device=self.device,
                brightness=_drawn(self.brightness),
                contrast=_drawn(self.contrast),
                saturation=_drawn(self.saturation),
                hue=_drawn(self.hue),
            )
        else:
            out = images
        return out

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(brightness={self.brightness}, contrast={self.contrast}, "
            f"saturation={self.saturation}, hue={self.hue}, prob={self.prob})"
        )


class RandomGaussianBlur:
    """Blur with a sigma drawn from U(0.1, 2.0) with probability `prob`.

    Args:
        prob: probability.
        window_size: side of the kernel in pixels.
        device: "cpu" or "gpu", where the operators run.
    """

    def __init__(self, prob: float = 0.5, window_size: int = 23, device: str = "gpu"):
        self.prob, self.window_size, self.device = prob, window_size, device

    def __call__(self, images):
        do = fn.random.coin_flip(probability=self.prob, dtype=types.DALIDataType.BOOL)
        if do:
            sigma = fn.random.uniform(range=[0.1, 2.0])
            out = fn.gaussian_blur(
                images, device=self.device, sigma=sigma, window_size=self.window_size
            )
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


class _Resize:
    """Random resized crop, or a plain resize to a square when `area` is None."""

    def __init__(self, size, area, device):
        self.size, self.area, self.device = size, area, device

    def __call__(self, images):
        if self.area is None:
            return fn.resize(
                images,
                device=self.device,
                size=(self.size, self.size),
                interp_type=types.INTERP_CUBIC,
            )
        return fn.random_resized_crop(
            images,
            device=self.device,
            size=(self.size, self.size),
            random_area=self.area,
            interp_type=types.INTERP_CUBIC,
        )

    def __repr__(self) -> str:
        return f"Resize({self.size}, area={self.area})"


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
    area = [rrc["crop_min_scale"], rrc["crop_max_scale"]] if rrc["enabled"] else None
    steps: list[Any] = [_Resize(entry["crop_size"], area, dali_device)]
    if jitter["prob"]:
        strengths = [jitter[strength] for strength in STRENGTHS]
        steps.append(RandomColorJitter(*strengths, prob=jitter["prob"], device=dali_device))
    if prob := entry["grayscale"]["prob"]:
        steps.append(RandomGrayScaleConversion(prob=prob, device=dali_device))
    if prob := entry["gaussian_blur"]["prob"]:
        steps.append(RandomGaussianBlur(prob=prob, device=dali_device))
    if prob := entry["solarization"]["prob"]:
        steps.append(RandomSolarize(prob=prob))
    own = (entry.get("mean", IMAGENET_MEAN), entry.get("std", IMAGENET_STD))
    mean, std = PRETRAIN_STATS.get(dataset, own)
    return AugWrapper(steps, entry["horizontal_flip"]["prob"], mean, std, dali_device)
