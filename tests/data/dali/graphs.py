# SPDX-License-Identifier: MIT
"""Parts of DALI graphs run on given arrays."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("nvidia.dali")

from nvidia.dali import fn, pipeline_def


def run(function, *inputs):
    """`function` of graph nodes on lists of arrays, one per sample; images are (H, W, 3).

    Returns:
        one array per sample, or a tuple of them where the function has several results.
    """
    n = len(inputs[0])

    @pipeline_def(batch_size=n, num_threads=1, device_id=None, seed=7, enable_conditionals=True)
    def graph():
        nodes = []
        for given in inputs:
            arrays = [np.array(array, order="C") for array in given]
            layout = "HWC" if arrays[0].ndim == 3 else None
            nodes.append(fn.external_source(itertools.repeat(arrays), layout=layout))
        return function(*nodes)

    pipe = graph()
    pipe.build()
    results = [[np.array(out.at(i)) for i in range(n)] for out in pipe.run()]
    return results[0] if len(results) == 1 else list(zip(*results, strict=True))


def textured(height, width, seed=0):
    """(height, width, 3) uint8 with gradients, noise and flat parts, like a photograph."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [128 + 127 * np.sin(x * rng.uniform(0, 0.3) + y * rng.uniform(0, 0.3)) for _ in "rgb"]
    noise = rng.normal(0, 40, (3, height, width)) * (x > width / 2)
    pixels = np.clip(np.stack(waves) + noise, 0, 255)
    pixels[:, : height // 4, : width // 4] = rng.integers(0, 256, (3, 1, 1))
    return pixels.astype(np.uint8).transpose(1, 2, 0)


def jpeg(pixels, orientation=None, quality=95):
    """The bytes of a JPEG, with an EXIF orientation if one is given."""
    exif = Image.Exif()
    if orientation is not None:
        exif[274] = orientation
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, exif=exif)
    return file.getvalue()
