#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Versions:  Pillow 13.0.0, torchvision 0.29.1, torch 2.14.1.
# Guess:     convert("RGB"), which every image-folder loader calls, brings a 16-bit grey PNG or
#            TIFF (X-rays, microscopy, satellites) to 8 bits by its upper byte, or refuses it.
# Behaviour: it clips: whatever is above 255 becomes 255. A normally exposed 16-bit image turns
#            white, without error or warning, and trains. A float TIFF with values from 0 to 1
#            turns black. torchvision.io.decode_image keeps the 16 bits, also with mode RGB.
# Seen:      0, 100, 255, 256, 1000, 30000, 65535 become 0, 100, 255, 255, 255, 255, 255; 0 to 1 in
#            float becomes 0, ..., 0, 1.
exec "$(dirname "$0")/run_with" pillow==13.0.0 numpy==2.4.6 torch==2.14.1 torchvision==0.29.1 \
    <<'PYTHON'
from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from torchvision.datasets.folder import default_loader
from torchvision.io import ImageReadMode, decode_image

from expect import expect

print(f"Pillow {PIL.__version__}, torchvision {torchvision.__version__}")
levels = np.array([[0, 100, 255, 256, 1000, 30000, 65535]], dtype=np.uint16)
clipped = np.minimum(levels, 255)
for suffix in ("png", "tiff"):
    Image.fromarray(levels).save(f"grey.{suffix}")
    read = np.asarray(default_loader(f"grey.{suffix}"))
    expect(f"{suffix}: {read[0, :, 0].tolist()}", bool((read == clipped[..., None]).all()))

Image.fromarray(np.linspace(0, 1, 7, dtype="float32")[None]).save("float.tiff")
read = np.asarray(default_loader("float.tiff"))[0, :, 0]
expect(f"float 0 to 1: {read.tolist()}", read[:-1].max() == 0)

data = torch.frombuffer(bytearray(Path("grey.png").read_bytes()), dtype=torch.uint8)
kept = decode_image(data, mode=ImageReadMode.RGB)
expect(
    f"decode_image: {kept.dtype}",
    kept.dtype == torch.uint16 and kept[0].tolist() == levels.tolist(),
)
PYTHON
