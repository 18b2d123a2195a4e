# SPDX-License-Identifier: MIT
"""The two readers of images agree on pixels and on what is broken."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from solo.data.datasets.images import (
    ReadError,
    decode_image,
    decode_pixels,
    read_image,
    read_pixels,
)

pytestmark = pytest.mark.unit
KINDS = [("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGBA"), ("PNG", "P")]


def encoded(kind="JPEG", mode="RGB", size=(37, 23)):
    """A smooth picture with some noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[: size[1], : size[0]]
    waves = np.stack([128 + 100 * np.sin(x / 7 + c) * np.cos(y / 5 - c) for c in range(3)], -1)
    levels = np.clip(waves + rng.integers(-20, 20, waves.shape), 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(levels).convert(mode).save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize(("kind", "mode"), KINDS)
def test_pixels_are_pillows(kind, mode, tmp_path):
    path = tmp_path / "image"
    path.write_bytes(encoded(kind, mode))
    image, pixels = np.array(read_image(path)), read_pixels(path)
    assert pixels.dtype == torch.uint8
    assert image.shape == (23, 37, 3)
    assert torch.equal(pixels.permute(1, 2, 0), torch.from_numpy(image))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_both_refuse_a_truncated_image_and_name_it(share):
    whole = encoded(size=(200, 150))
    for decode in (decode_image, decode_pixels):
        with pytest.raises(ReadError, match=r"Cannot read image 'a/b\.jpg'"):
            decode(whole[: int(share * len(whole))], "a/b.jpg")


@pytest.mark.parametrize("content", [b"", b"no image", b"\xff\xd8\xff", None])
def test_what_is_no_image_is_named(tmp_path, content):
    path = tmp_path / "image.jpg"
    if content is not None:
        path.write_bytes(content)
    for read in (read_image, read_pixels):
        with pytest.raises(ReadError, match=r"Cannot read image '.*image\.jpg'"):
            read(path)


def test_a_torchvision_without_jpeg_reads_them_by_pillow(monkeypatch):
    def absent(data, **options):
        raise RuntimeError("decode_jpeg: torchvision not compiled with libjpeg support")

    wanted = decode_pixels(encoded(), "a")
    monkeypatch.setattr("solo.data.datasets.images.decode_jpeg", absent)
    assert torch.equal(decode_pixels(encoded(), "a"), wanted)
