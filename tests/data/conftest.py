# SPDX-License-Identifier: MIT
"""Small image folders that are made on the spot."""

import numpy as np
import PIL
import pytest
from PIL import Image

from scripts.utils.convert_imgfolder_to_shards import convert_imgfolder_to_shards

needs_pillow_13 = pytest.mark.skipif(
    int(PIL.__version__.split(".")[0]) < 13, reason="earlier versions always begin with the columns"
)


def write_folder(root, classes=("ant", "bee"), per_class=6, size=40, suffix="jpg"):
    """`root/<class>/img_<i>.<suffix>`, every image in its own flat colour."""
    number = 0
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            pixels = np.full((size, size, 3), (10 * number % 250, 128, 60), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"img_{i}.{suffix}")
            number += 1
    return root


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "train")


@pytest.fixture
def flat_folder(tmp_path):
    write_folder(tmp_path / "flat", classes=("",), per_class=8)
    return tmp_path / "flat"


def augmentation(**changes):
    """An entry of `augmentations` with every operation on."""
    entry = {
        "rrc": {"enabled": True, "crop_min_scale": 0.2, "crop_max_scale": 1.0},
        "color_jitter": {
            "prob": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1,
        },
        "grayscale": {"prob": 0.2},
        "gaussian_blur": {"prob": 0.5},
        "solarization": {"prob": 0.1},
        "equalization": {"prob": 0.1},
        "horizontal_flip": {"prob": 0.5},
        "crop_size": 32,
        "num_crops": 2,
    }  # fmt: skip
    return {**entry, **changes}


@pytest.fixture
def converted(folder):
    convert_imgfolder_to_shards(folder, folder.parent / "shards", shard_size=5)
    return folder.parent / "shards"
