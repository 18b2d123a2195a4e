#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Versions:  torchvision 0.29.1, Pillow 13.0.0, torch 2.14.1.
# Guess:     GaussianBlur of sigma 0.3 is one law: variance 0.09, whether Pillow's or
#            torchvision's, as for larger sigma.
# Behaviour: torchvision samples the bell curve at whole pixels, and below sigma 0.5 the samples
#            beside the middle vanish: the blur has far less variance than sigma^2. Pillow's, three
#            box blurs, keeps the variance. BYOL's and DINO's range is sigma 0.1 to 2: in a sixth
#            of the blurs the two differ, from "no blur at all" to a visible one.
# Seen:      variance of the kernel over sigma^2 at sigma 0.2, 0.3, 0.4, 0.5, 1: torchvision 0.00,
#            0.09, 0.51, 0.86, 1.00; Pillow 1.16, 0.96, 0.89, 0.97, 0.99 (levels are whole
#            numbers).
exec "$(dirname "$0")/run_with" torch==2.14.1 torchvision==0.29.1 pillow==13.0.0 numpy==2.4.6 \
    <<'PYTHON'
import numpy as np
import PIL
import torch
import torchvision
from PIL import Image, ImageFilter
from torchvision.transforms.v2.functional import gaussian_blur

from expect import expect

print(f"torchvision {torchvision.__version__}, Pillow {PIL.__version__}")
row = np.zeros((31, 31), np.uint8)
row[:, 15] = 255  # a line, so that the blur acts along one axis
distance = (np.arange(31) - 15) ** 2


def kernels(sigma):
    pillow = Image.fromarray(row).filter(ImageFilter.GaussianBlur(sigma))
    sampled = gaussian_blur(torch.from_numpy(row)[None].float(), [23, 23], [sigma, sigma])
    return [np.asarray(x, dtype=float)[15] for x in (sampled[0], pillow)]


for sigma, low, high in (
    (0.2, 0, 0.01),
    (0.3, 0.05, 0.13),
    (0.4, 0.45, 0.6),
    (0.5, 0.8, 0.92),
    (1, 0.97, 1.03),
):
    torchvisions, pillows = ((k @ distance) / k.sum() / sigma**2 for k in kernels(sigma))
    expect(
        f"sigma {sigma}: variance / sigma^2 {torchvisions:.2f} and {pillows:.2f} (Pillow)",
        low <= torchvisions <= high and abs(pillows - 1) < 0.2,
    )
PYTHON
