# SPDX-License-Identifier: MIT
"""Generated pictures with structure, and JPEGs of them."""

import io

import numpy as np
from PIL import Image


def textured(height, width, seed=0):
    """(height, width, 3) uint8 with gradients, noise and flat parts, like a photograph."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [128 + 127 * np.sin(x * rng.uniform(0, 0.3) + y * rng.uniform(0, 0.3)) for _ in "rgb"]
    noise = rng.normal(0, 40, (3, height, width)) * (x > width / 2)
    pixels = np.clip(np.stack(waves) + noise, 0, 255)
    pixels[:, : height // 4, : width // 4] = rng.integers(0, 256, (3, 1, 1))
    return pixels.astype(np.uint8).transpose(1, 2, 0)


def encoded(pixels, orientation=None, kind="JPEG"):
    """The bytes of an image file, with an EXIF orientation if one is given."""
    exif = Image.Exif()
    if orientation is not None:
        exif[274] = orientation
    file = io.BytesIO()
    options = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(kind, {})
    Image.fromarray(pixels).save(file, kind, exif=exif, **options)
    return file.getvalue()
