# SPDX-License-Identifier: MIT
"""From a picture to what an encoder takes: as large, turned and normalised as it was trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from solo.data.catalogue import known
from solo.data.classification_dataloader import folder_transform
from solo.data.datasets.images import readers
from solo.data.shown import channels_of, reading_of, shown


class Preprocess:
    """What evaluation does to images before the encoder of a run sees them.

    >>> encoder = solo.load_pretrained("trained_models/byol/0")  # doctest: +SKIP
    >>> features = encoder(encoder.preprocess("photo.jpg")[None])  # doctest: +SKIP

    Args:
        args: configuration of the run (`args.json`).

    Attributes:
        size: side of the images in pixels.
        channels: of the images.
        mean: of each channel in 0..1.
        std: likewise.
        load: from a path to an image, as the run has read its files.
    """

    def __init__(self, args: Mapping[str, Any]) -> None:
        images = shown(known((args.get("data") or {}).get("dataset")), args)
        self.size, self.mean, self.std = images.size, images.mean, images.std
        self.channels = channels_of(args)
        self.load, _ = readers(**reading_of(args))
        self._transform = folder_transform(args)

    def __call__(self, image: Image.Image | str | Path) -> Tensor:
        """A picture, or the path of one, as (channels, size, size) float32.

        Raises:
            ReadError: the file is no image.
        """
        if isinstance(image, (str, Path)):
            return self._transform(self.load(image))
        three = self.channels == 3
        return self._transform(image.convert("RGB") if three else pil_to_tensor(image))

    def __repr__(self) -> str:
        return f"Preprocess(size={self.size}, mean={list(self.mean)}, std={list(self.std)})"
