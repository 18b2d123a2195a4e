# SPDX-License-Identifier: MIT
"""Images with smooth and noisy parts, as a batch and as PIL images."""

import numpy as np
import torch
from PIL import Image


def batch(n=8, height=32, width=32, seed=0):
    """(n, 3, height, width) uint8: noise, gradients and flat areas; the first is one colour."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    images = []
    for i in range(n):
        waves = [
            128 + 127 * np.sin(x * rng.uniform(0, 0.5) + y * rng.uniform(0, 0.5)) for _ in "rgb"
        ]
        noise = rng.integers(-90, 91, (3, height, width)) * (i % 3)
        images.append(np.clip(np.stack(waves) + noise, 0, 255))
    images[0] = np.full((3, height, width), 77)
    return torch.from_numpy(np.stack(images).astype(np.uint8))


def pil(image):
    """(3, H, W) levels as a PIL image."""
    return Image.fromarray(image.to(torch.uint8).permute(1, 2, 0).contiguous().numpy())


def tensor(image):
    """A PIL image as (3, H, W) float levels."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


def numbers(n, columns, seed=0):
    """(n, columns) uniform random numbers."""
    return torch.rand(n, columns, generator=torch.Generator().manual_seed(seed))
