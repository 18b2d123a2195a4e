# SPDX-License-Identifier: MIT
"""Reading one image, with an error that names the file and survives worker processes.

Two readers give the same pixels: `read_image` a PIL image, `read_pixels` a tensor, which for JPEGs
takes a third less time. Both turn an image as its EXIF orientation says where `exif` is `apply`,
and take it as it is stored where it is `ignore`, as Pillow and torchvision do by default.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import decode_jpeg
from torchvision.transforms.functional import pil_to_tensor

from solo.errors import ConfigError, DataError, did_you_mean

Range = tuple[float, float] | None


class NotWanted(ValueError):
    """A whole image that cannot be used as it is: no known white, or other channels."""


# What Pillow raises on broken input: not an image, truncated, corrupt chunks, absurd sizes.
_BROKEN = (OSError, SyntaxError, ValueError, IndexError, Image.DecompressionBombError)
JPEG_MAGIC, NPY_MAGIC = b"\xff\xd8", b"\x93NUMPY"
EXIF = ("ignore", "apply")
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class WorkerError(DataError):
    """An error in one image, found while training; the message is one line.

    A DataLoader worker hands an exception to the main process by calling its class with the
    worker's whole traceback as the message. The last line of that is the message that was meant.
    """

    def __init__(self, message: str):
        if message.startswith("Caught ") and "Traceback" in message:
            last = message.rstrip().rsplit("\n", 1)[-1]
            message = last.split(f"{type(self).__name__}: ", 1)[-1]
        super().__init__(" ".join(message.split()))


class ReadError(WorkerError):
    """A file could not be read while training; the message names it."""


def require_exif(exif: str) -> str:
    """`exif` itself if it is `ignore` or `apply`.

    Raises:
        ConfigError: it is something else.
    """
    if exif not in EXIF:
        raise ConfigError(f"data.exif: '{exif}' is unknown. {did_you_mean(str(exif), EXIF)}")
    return exif


def require_range(value_range: Sequence[float] | None) -> tuple[float, float] | None:
    """`data.value_range` as (lowest, highest), None where there is none.

    Raises:
        ConfigError: it is no pair of growing numbers.
    """
    if value_range is None:
        return None
    low, high = [*value_range, 0, 0][:2]
    if len(value_range) != 2 or not low < high:
        raise ConfigError(
            f"data.value_range={list(value_range)}: give the values that are black and white, such "
            "as [0,1]."
        )
    return float(low), float(high)


def readers(
    exif: str = "ignore",
    pixels: bool = False,
    value_range: Sequence[float] | None = None,
    channels: int = 3,
) -> tuple[Callable, Callable]:
    """How files, and how encoded bytes with a name, become images.

    Args:
        exif: `apply` turns images as their EXIF orientation says, `ignore` does not.
        pixels: make (3, H, W) uint8 tensors, not PIL images.
        value_range: what is black and what is white in images of int32 or float values.
        channels: of the images; other than 3, they are tensors (channels, H, W) uint8.

    Raises:
        ConfigError: `exif` is unknown, or the range is none.
    """
    pair: tuple[Callable, Callable]
    pair = (read_pixels, decode_pixels) if pixels else (read_image, decode_image)
    options: dict[str, Any]
    options = {"exif": require_exif(exif), "value_range": require_range(value_range)}
    if channels != 3:
        from solo.data.datasets.channels import decode_channels, read_channels

        pair, options = (read_channels, decode_channels), {**options, "channels": channels}
    return tuple(partial(function, **options) for function in pair)  # type: ignore[return-value]


def as_rgb(image: Image.Image, exif: str, value_range: Range) -> Image.Image:
    """An opened image as RGB of one byte per channel; for the options see `readers`."""
    image.load()  # some formats keep their EXIF behind the pixels
    if image.mode.startswith(("I", "F")):
        image = _eight_bits(image, value_range)
    turn = turn_of(image) if exif == "apply" else None
    image = image.convert("RGB")
    return image if turn is None else image.transpose(turn)


def _eight_bits(image: Image.Image, value_range: Range) -> Image.Image:
    """Grey images of 16 bits, int32 and floats as one byte per pixel; Pillow cuts them at 255."""
    values = np.asarray(image)
    if image.mode == "I" and image.format in ("PNG", "PPM"):  # 16 bits
        values = values.astype(np.uint16)
    found = Image.fromarray(eight_bits(values, value_range))
    found.info = image.info
    return found


def eight_bits(values: np.ndarray, value_range: Range) -> np.ndarray:
    """Values of any type as levels, uint8: bytes as they are, 16 bits over 257, others by a range.

    Raises:
        ValueError: what is white in them is not known, or one is no number.
    """
    if values.dtype == np.uint8:
        return values
    sixteen = values.dtype.kind == "u" and values.dtype.itemsize == 2
    kind = "float" if values.dtype.kind == "f" else "int32"
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"{(~np.isfinite(values)).sum()} of its values are not finite")
    if not sixteen and value_range is None:
        raise NotWanted(
            f"its {kind} values, here from {values.min():g} to {values.max():g}, have no known "
            "white: set data.value_range=[black,white], such as [0,1]"
        )
    low, high = (0.0, 65535.0) if sixteen else value_range  # type: ignore[misc]
    return ((values - low) * (255 / (high - low))).round().clip(0, 255).astype(np.uint8)


def array_of(encoded: bytes) -> np.ndarray:
    """The array in the bytes of an .npy file.

    Raises:
        ValueError: it is damaged, or holds objects or no numbers.
    """
    array = np.load(io.BytesIO(encoded), allow_pickle=False)
    if array.dtype.kind not in "uif":
        raise ValueError(f"an array of {array.dtype} is no image")
    return array


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """What turns a loaded image as its EXIF orientation says; None where nothing does."""
    return _TURNS.get(_orientation(image))


def _opened(file: Any, value_range: Range) -> Image.Image:
    """The image in a file: what Pillow reads, or an RGB array."""
    start = file.read(len(NPY_MAGIC))
    file.seek(0)
    if start != NPY_MAGIC:
        return Image.open(file)
    values = array_of(file.read())
    if values.ndim == 3 and values.shape[2] != 3 == values.shape[0]:
        values = values.transpose(1, 2, 0)
    if values.ndim == 2 or (values.ndim == 3 and values.shape[2] == 3):
        return Image.fromarray(np.ascontiguousarray(eight_bits(values, value_range)))
    raise NotWanted(f"an array of shape {values.shape} is no RGB image (see in_chans)")


def _orientation(image: Image.Image) -> int | None:
    """What EXIF says; XMP, which Pillow asks too, is not asked, as no other decoder does."""
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif"))
        return exif.get(_ORIENTATION)
    except Exception:  # a damaged note about an image is no reason to refuse it
        return None


@contextmanager
def broken_image(name: str) -> Iterator[None]:
    """Inside, what a decoder raises on broken input becomes a `ReadError` that says `name`."""
    try:
        yield
    except _BROKEN as error:
        raise ReadError(_explain(name, error)) from error


def read_image(path: str | Path, exif: str = "ignore", value_range: Range = None) -> Image.Image:
    """The image at `path` as RGB; for the options see `readers`.

    Raises:
        ReadError: the file is missing, truncated or not an image.
    """
    with broken_image(str(path)), open(path, "rb") as file, _opened(file, value_range) as image:
        return as_rgb(image, exif, value_range)


def decode_image(
    encoded: bytes, name: str, exif: str = "ignore", value_range: Range = None
) -> Image.Image:
    """The encoded image (JPEG, PNG, ... bytes) as RGB; `name` says where it came from.

    Raises:
        ReadError: the bytes are no complete image.
    """
    with broken_image(name), _opened(io.BytesIO(encoded), value_range) as image:
        return as_rgb(image, exif, value_range)


def read_pixels(path: str | Path, exif: str = "ignore", value_range: Range = None) -> Tensor:
    """The image at `path` as RGB levels (3, H, W) uint8.

    Raises:
        ReadError: the file is missing, truncated or not an image.
    """
    try:
        encoded = Path(path).read_bytes()
    except OSError as error:
        raise ReadError(_explain(str(path), error)) from error
    return decode_pixels(encoded, str(path), exif, value_range)


def decode_pixels(
    encoded: bytes, name: str, exif: str = "ignore", value_range: Range = None
) -> Tensor:
    """The encoded image as RGB levels (3, H, W) uint8; `name` says where it came from.

    Raises:
        ReadError: the bytes are no complete image.
    """
    if encoded.startswith(JPEG_MAGIC):
        try:
            data = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
            pixels = decode_jpeg(data, apply_exif_orientation=exif == "apply")
            if len(pixels) in (1, 3):  # Pillow has its own way from four colours to three
                return pixels.expand(3, -1, -1)
        except RuntimeError:
            pass  # Pillow says what is wrong
    return pil_to_tensor(decode_image(encoded, name, exif, value_range))


def _explain(name: str, error: BaseException) -> str:
    reason = str(error)
    if isinstance(error, Image.UnidentifiedImageError):
        reason = "not an image"
    if isinstance(error, NotWanted):
        return f"Cannot read image '{name}': {reason}."
    return f"Cannot read image '{name}': {reason}. Replace or remove the file."
