# SPDX-License-Identifier: MIT
"""`data.augment: device` of labelled images: workers crop and mirror, the device does the rest.

The workers' draws and crops are those of `data.augment: workers`, so the pictures are the same to
the bit of a rounding; what travels to the device is bytes, a quarter of the finished images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms as T
from torchvision.transforms import functional as TF

from solo.monitoring.profiling import AUGMENTATION, section


class AsBytes:
    """A PIL image, or a tensor (C, H, W) uint8, as such a tensor."""

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        return image if isinstance(image, Tensor) else TF.pil_to_tensor(image)


def left_as_bytes(transform: T.Compose) -> T.Compose:
    """A pipeline without its last two steps, which convert and normalise: to (C, H, W) uint8."""
    return T.Compose([*transform.transforms[:-2], AsBytes()])


class NormalisedOnDevice(LightningDataModule):
    """Loaders whose training images arrive as bytes and are normalised on the training device.

    Args:
        train: batches `(images (N, C, H, W) uint8, targets)`.
        val: validation images, finished.
        mean: of each channel in 0..1.
        std: likewise.
    """

    def __init__(
        self, train: DataLoader, val: DataLoader, mean: Sequence[float], std: Sequence[float]
    ):
        super().__init__()
        self.train, self.val = train, val
        self.split = getattr(train.dataset, "split", None)
        self.mean, self.std = (torch.tensor(v)[:, None, None] for v in (mean, std))

    def train_dataloader(self) -> DataLoader:
        """The loader of training images, which are finished on the device."""
        return self.train

    def val_dataloader(self) -> DataLoader:
        """The loader of validation images."""
        return self.val

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Bytes to normalised floats; finished images stay as they are."""
        images, targets = batch
        if images.dtype != torch.uint8:
            return batch
        with section(AUGMENTATION):
            return [self.normalised(images), targets]

    def normalised(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) uint8 as float32 with the mean and deviation of the encoder's."""
        mean, std = self.mean.to(images.device), self.std.to(images.device)
        return images.float().div_(255).sub_(mean).div_(std)
