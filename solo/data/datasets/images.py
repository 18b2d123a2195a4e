# SPDX-License-Identifier: MIT
"""Reading one image, with an error that names the file and survives worker processes.

Two readers give the same pixels: `read_image` a PIL image, `read_pixels` a tensor, which for JPEGs
takes a third less time.
"""

from __future__ import annotations

import io
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.io import decode_jpeg
from torchvision.transforms.functional import pil_to_tensor

from solo.errors import DataError

# What Pillow raises on broken input: not an image, truncated, corrupt chunks, absurd sizes.
_BROKEN = (OSError, SyntaxError, ValueError, IndexError, Image.DecompressionBombError)
JPEG_MAGIC = b"\xff\xd8"


class ReadError(DataError):
    """A file could not be read while training; the message is one line and names it.

    A DataLoader worker hands an exception to the main process by calling its class with the
    worker's whole traceback as the message. The last line of that is the message that was meant.
    """

    def __init__(self, message: str):
        if message.startswith("Caught ") and "Traceback" in message:
            last = message.rstrip().rsplit("\n", 1)[-1]
            message = last.split(f"{type(self).__name__}: ", 1)[-1]
        super().__init__(" ".join(message.split()))


def read_image(path: str | Path) -> Image.Image:
    """The image at `path` as RGB.

    Raises:
        ReadError: the file is missing, truncated or not an image.
    """
    try:
        with open(path, "rb") as file, Image.open(file) as image:
            return image.convert("RGB")
    except _BROKEN as error:
        raise ReadError(_explain(str(path), error)) from error


def decode_image(encoded: bytes, name: str) -> Image.Image:
    """The encoded image (JPEG, PNG, ... bytes) as RGB; `name` says where it came from.

    Raises:
        ReadError: the bytes are no complete image.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return image.convert("RGB")
    except _BROKEN as error:
        raise ReadError(_explain(name, error)) from error


def read_pixels(path: str | Path) -> Tensor:
    """The image at `path` as RGB levels (3, H, W) uint8.

    Raises:
        ReadError: the file is missing, truncated or not an image.
    """
    try:
        encoded = Path(path).read_bytes()
    except OSError as error:
        raise ReadError(_explain(str(path), error)) from error
    return decode_pixels(encoded, str(path))


def decode_pixels(encoded: bytes, name: str) -> Tensor:
    """The encoded image as RGB levels (3, H, W) uint8; `name` says where it came from.

    Raises:
        ReadError: the bytes are no complete image.
    """
    if encoded.startswith(JPEG_MAGIC):
        try:
            pixels = decode_jpeg(torch.frombuffer(bytearray(encoded), dtype=torch.uint8))
            if len(pixels) in (1, 3):  # Pillow has its own way from four colours to three
                return pixels.expand(3, -1, -1)
        except RuntimeError:
            pass  # Pillow says what is wrong
    return pil_to_tensor(decode_image(encoded, name))


def _explain(name: str, error: BaseException) -> str:
    reason = str(error)
    if isinstance(error, Image.UnidentifiedImageError):
        reason = "not an image"
    return f"Cannot read image '{name}': {reason}. Replace or remove the file."
