#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Versions:  nvidia-dali-cuda130 2.4.0 (CPU operators), Pillow 13.0.0.
# Guess:     an antialiased resize is one thing by now: DALI's triangular filter and Pillow's
#            bilinear differ by rounding.
# Behaviour: inside the image they do. At its border the filter reaches beyond the image: DALI
#            repeats the edge pixel there, Pillow leaves the part outside out and divides by what
#            remains. The outermost pixels differ by tens of levels, and in a small image (a local
#            crop of 96 pixels, a CIFAR view) the border is a large part.
# Seen:      64 columns of which the first 4 are white, shrunk to 8: the first pixel is 128 in
#            DALI, 109 in Pillow; bicubic 127 and 116. Noise of 64x64 shrunk to 16x16: at most 1
#            level apart inside, 9 at the border.
exec "$(dirname "$0")/run_with" nvidia-dali-cuda130==2.4.0 pillow==13.0.0 numpy==2.4.6 <<'PYTHON'
from importlib.metadata import version

import numpy as np
import nvidia.dali.fn as fn
import nvidia.dali.types as types
from nvidia.dali import pipeline_def
from PIL import Image

from expect import expect

print(f"DALI {version('nvidia-dali-cuda130')}, Pillow {version('pillow')}")
FILTERS = {
    "linear": (types.DALIInterpType.INTERP_TRIANGULAR, Image.Resampling.BILINEAR),
    "cubic": (types.DALIInterpType.INTERP_CUBIC, Image.Resampling.BICUBIC),
}


def both(image, size, name):
    dali, pillow = FILTERS[name]

    @pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def pipeline():
        data = fn.external_source(source=lambda: [image], layout="HWC")
        return fn.resize(data, resize_x=size, resize_y=size, interp_type=dali, antialias=True)

    made = pipeline()
    made.build()
    shrunk = np.asarray(made.run()[0].at(0)).astype(int)
    return shrunk, np.asarray(Image.fromarray(image).resize((size, size), pillow)).astype(int)


stripe = np.zeros((64, 64, 3), np.uint8)
stripe[:, :4] = 255
for name, values in {"linear": (128, 109), "cubic": (128, 116)}.items():
    dali, pillow = (int(x[4, 0, 0]) for x in both(stripe, 8, name))
    expect(
        f"{name}: DALI {dali}, Pillow {pillow}",
        abs(dali - values[0]) <= 1 and abs(pillow - values[1]) <= 1,
    )

noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
dali, pillow = both(noise, 16, "linear")
difference = abs(dali - pillow)
inside, whole = difference[1:-1, 1:-1].max(), difference.max()
expect(f"noise: inside {inside} levels, with the border {whole}", inside <= 1 and whole >= 5)
PYTHON
