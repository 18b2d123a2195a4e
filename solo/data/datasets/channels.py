# SPDX-License-Identifier: MIT
"""Reading images of any number of channels: grey, NumPy arrays, TIFF with more than four.

They become tensors (C, H, W) uint8, by the rule of `images` for values of more than eight bits.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageSequence
from torch import Tensor

from solo.data.datasets import images
from solo.data.datasets.images import Range

TIFF_MAGIC = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")


def read_channels(
    path: str | Path, channels: int, exif: str = "ignore", value_range: Range = None
) -> Tensor:
    """The image at `path` as levels (channels, H, W) uint8; for the options see `readers`.

    Raises:
        ReadError: the file is missing, broken, or has another number of channels.
    """
    with images.broken_image(str(path)):
        encoded = Path(path).read_bytes()
    return decode_channels(encoded, str(path), channels, exif, value_range)


def decode_channels(
    encoded: bytes, name: str, channels: int, exif: str = "ignore", value_range: Range = None
) -> Tensor:
    """The encoded image or array as levels (channels, H, W) uint8; `name` says where it is from.

    Grey is what Pillow makes of colours (`convert("L")`); no other channels are made up.

    Raises:
        ReadError: the bytes are no image, or one with another number of channels.
    """
    with images.broken_image(name):
        values = _values(encoded, channels, exif)
        if values.ndim == 2:
            values = values[..., None]
        if values.ndim != 3 or channels not in (values.shape[2], values.shape[0]):
            raise images.NotWanted(
                f"it has the shape {values.shape}, and backbone.kwargs.in_chans={channels} asks "
                f"for (height, width, {channels})"
            )
        if values.shape[2] != channels:
            values = values.transpose(1, 2, 0)
        levels = images.eight_bits(values, value_range)
    return torch.from_numpy(np.ascontiguousarray(levels.transpose(2, 0, 1)))


def _values(encoded: bytes, channels: int, exif: str) -> np.ndarray:
    """The values of an image, (H, W) or with its channels first or last."""
    if encoded.startswith(images.NPY_MAGIC):
        return images.array_of(encoded)
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return _of_pillow(image, channels, exif)
    except Image.UnidentifiedImageError:
        if not encoded.startswith(TIFF_MAGIC):
            raise
    try:
        import tifffile
    except ImportError:
        raise images.NotWanted(
            "Pillow reads no TIFF of so many channels: pip install tifffile, or save it as .npy"
        ) from None
    return tifffile.imread(io.BytesIO(encoded))


def _of_pillow(image: Image.Image, channels: int, exif: str) -> np.ndarray:
    frames = getattr(image, "n_frames", 1)
    if frames == channels > 1:  # a TIFF with a page per channel
        return np.stack([np.asarray(frame) for frame in ImageSequence.Iterator(image)])
    image.load()
    turn = images.turn_of(image) if exif == "apply" else None
    deep = image.mode.startswith(("I", "F"))
    if image.mode in ("P", "1") or (channels == 1 and not deep):
        image = image.convert("L" if channels == 1 else "RGB")
    elif image.mode == "I" and image.format in ("PNG", "PPM"):  # 16 bits
        image = Image.fromarray(np.asarray(image).astype(np.uint16))
    return np.asarray(image if turn is None else image.transpose(turn))
