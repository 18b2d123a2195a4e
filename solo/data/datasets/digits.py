# SPDX-License-Identifier: MIT
"""`digits`: scikit-learn's 1,797 real handwritten digits, redrawn so that raw pixels teach nothing.

Each 8x8 original is drawn at 32x32 RGB at a random place, size and tilt, in a random colour on a
smooth coloured background, with the polarity inverted half of the time. Nothing is downloaded.
Rendering is deterministic: the same seed gives the same bytes, and rendering number `r` of an
original does not depend on how many renderings are asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from solo.errors import DataError

SIZE = 32  # pixels of a side
N_VAL = 360  # originals held out; the other 1,437 are for training

# One row of the table of random numbers that place a digit. All uniform on [0, 1).
_GEOMETRY = ("size", "tilt", "x", "y")


class DigitsDataset(Dataset):
    """Rendered digits as PIL images, kept in memory (3 kB each).

    Args:
        train: the 1,437 training originals, or else the 360 held-out ones.
        transform: applied to the PIL image.
        renderings: how many times each original is drawn.
        seed: of the rendering; the split does not depend on it.

    Attributes:
        data: uint8 array (N, 32, 32, 3), all originals once per rendering.
        targets: list of N digits.
        originals: int array (N,), which of the 1,797 originals an item shows.

    Raises:
        DataError: `renderings` is less than 1.
    """

    classes = [str(digit) for digit in range(10)]

    def __init__(
        self,
        train: bool = True,
        transform: Callable | None = None,
        renderings: int = 2,
        seed: int = 0,
    ):
        if renderings < 1:
            raise DataError(f"digits: renderings must be at least 1, got {renderings}.")
        self.transform = transform
        self.data, targets, self.originals = _rendered_split(bool(train), int(renderings), seed)
        self.targets = targets.tolist()

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = Image.fromarray(self.data[index])
        return (self.transform(image) if self.transform else image), self.targets[index]

    def __len__(self) -> int:
        return len(self.targets)


@lru_cache(maxsize=4)
def _rendered_split(train: bool, renderings: int, seed: int):
    """All renderings of one split: images (N, 32, 32, 3) uint8, targets (N,), originals (N,)."""
    from sklearn.datasets import load_digits

    source = load_digits()
    order = np.random.default_rng(1797).permutation(len(source.target))
    kept = np.sort(order[N_VAL:] if train else order[:N_VAL])
    inks = source.images[kept].astype(np.float32) / 16.0
    images = [render(inks, np.random.default_rng([seed, int(train), r])) for r in range(renderings)]
    data = np.concatenate(images)
    data.setflags(write=False)  # shared by every dataset of this process
    return data, np.tile(source.target[kept], renderings), np.tile(kept, renderings)


def render(inks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw each 8x8 digit once as a 32x32 colour image.

    Args:
        inks: (N, 8, 8) float, 0 is paper and 1 is full ink.
        rng: source of place, size, tilt, colours and polarity.

    Returns:
        (N, 32, 32, 3) uint8.
    """
    ink = _placed(inks, rng)[..., None]
    paper = _background(len(inks), rng)
    colour = rng.uniform(0.0, 0.4, (len(inks), 1, 1, 3)).astype(np.float32)
    image = paper * (1 - ink) + colour * ink
    inverted = rng.random((len(inks), 1, 1, 1)) < 0.5
    image = np.where(inverted, 1 - image, image)
    return np.clip(np.rint(image * 255), 0, 255).astype(np.uint8)


def _placed(inks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Digits at a random place, size (20 to 30 pixels) and tilt (up to 15 degrees): (N, 32, 32)."""
    draw = dict(zip(_GEOMETRY, rng.random((4, len(inks), 1, 1), dtype=np.float32), strict=True))
    side = 20 + 10 * draw["size"]
    angle = np.deg2rad(15) * (2 * draw["tilt"] - 1)
    room = SIZE - side
    centre_x = side / 2 + room * draw["x"]
    centre_y = side / 2 + room * draw["y"]
    pixels = np.arange(SIZE, dtype=np.float32) + 0.5
    dx, dy = pixels[None, None, :] - centre_x, pixels[None, :, None] - centre_y
    scale = 8 / side
    u = (np.cos(angle) * dx + np.sin(angle) * dy) * scale + 3.5
    v = (-np.sin(angle) * dx + np.cos(angle) * dy) * scale + 3.5
    return _bilinear(np.pad(inks, ((0, 0), (1, 1), (1, 1))), u + 1, v + 1)


def _bilinear(images: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Values of `images` (N, H, W) at columns `u` and rows `v` (N, h, w); outside is the border."""
    height, width = images.shape[1:]
    u, v = np.clip(u, 0, width - 1.001), np.clip(v, 0, height - 1.001)
    left, top = u.astype(np.int64), v.astype(np.int64)
    u, v = u - left, v - top
    item = np.arange(len(images))[:, None, None]
    upper = images[item, top, left] * (1 - u) + images[item, top, left + 1] * u
    lower = images[item, top + 1, left] * (1 - u) + images[item, top + 1, left + 1] * u
    return upper * (1 - v) + lower * v


def _background(n: int, rng: np.random.Generator) -> np.ndarray:
    """Light papers whose colour drifts: a 3x3 grid of colours, interpolated to (n, 32, 32, 3)."""
    base = rng.uniform(0.6, 0.9, (n, 1, 1, 3))
    grid = (base + rng.uniform(-0.15, 0.15, (n, 3, 3, 3))).astype(np.float32)
    at = np.linspace(0, 2, SIZE, dtype=np.float32)
    u = np.broadcast_to(at[None, None, :], (n, SIZE, SIZE))
    v = np.broadcast_to(at[None, :, None], (n, SIZE, SIZE))
    return np.stack([_bilinear(grid[..., c], u, v) for c in range(3)], axis=-1)
