# SPDX-License-Identifier: MIT
"""Reading one image, with an error that names the file and survives worker processes."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from solo.errors import DataError

# What Pillow raises on broken input: not an image, truncated, corrupt chunks, absurd sizes.
_BROKEN = (OSError, SyntaxError, ValueError, IndexError, Image.DecompressionBombError)


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


def _explain(name: str, error: BaseException) -> str:
    reason = str(error)
    if isinstance(error, Image.UnidentifiedImageError):
        reason = "not an image"
    return f"Cannot read image '{name}': {reason}. Replace or remove the file."
