# SPDX-License-Identifier: MIT
"""Images of more than eight bits: scaled, not cut at 255, in every format."""

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from solo.data.classification_dataloader import prepare_datasets as labelled
from solo.data.datasets.images import ReadError, read_image, read_pixels, readers
from solo.data.pretrain_dataloader import prepare_datasets as pretraining
from solo.data.resident.images import resident_images
from solo.errors import ConfigError

RAMP = np.arange(48, dtype=np.float64).repeat(48).reshape(48, 48).T / 47  # 48 grey levels


def written(folder, kind):
    """The ramp, black to white, in a file; and the range that it needs."""
    path = folder / f"x.{'png' if kind == 'png16' else 'tiff'}"
    if kind in ("png16", "tiff16"):
        Image.fromarray((RAMP * 65535).round().astype(np.uint16)).save(path)
        return path, None
    if kind == "int32":
        Image.fromarray((RAMP * 4000 - 1000).round().astype(np.int32)).save(path)
        return path, [-1000, 3000]
    Image.fromarray(RAMP.astype(np.float32)).save(path)
    return path, [0, 1]


@pytest.mark.parametrize("kind", ["png16", "tiff16", "int32", "float"])
def test_every_level_of_a_ramp_is_there(tmp_path, kind):
    path, given = written(tmp_path, kind)
    for pixels in (False, True):
        load, decode = readers(pixels=pixels, value_range=given)
        for image in (load(path), decode(path.read_bytes(), "x")):
            found = image if pixels else pil_to_tensor(image)
            assert found.shape == (3, 48, 48)
            error = found.double() - torch.from_numpy(RAMP * 255)
            assert error.abs().max() <= 1
            assert len(found.unique()) == 48


@pytest.mark.parametrize("kind", ["int32", "float"])
def test_values_without_a_known_white_are_refused(tmp_path, kind):
    path, _ = written(tmp_path, kind)
    for read in (read_image, read_pixels):
        with pytest.raises(ReadError, match=rf"x\.tiff.*{kind} values.*data\.value_range"):
            read(path)
    for wrong in ([1, 0], [0], [0, 1, 2]):
        with pytest.raises(ConfigError, match=r"data\.value_range"):
            readers(value_range=wrong)


def test_the_same_pixels_in_every_format(tmp_path):
    """Pretraining and evaluation, folders, H5 and resident."""
    folders = [tmp_path / "images" / name for name in "ab"]
    for folder in folders:
        folder.mkdir(parents=True)
        path, given = written(folder, "float")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for name in "ab":
            file.create_group(name)["x.tiff"] = np.frombuffer(path.read_bytes(), np.uint8)
    wanted = torch.from_numpy((RAMP * 255).round().astype(np.uint8)).expand(3, -1, -1)
    options = {"value_range": given}
    images = str(tmp_path / "images")
    train, val = labelled("custom", pil_to_tensor, pil_to_tensor, images, images, **options)
    found = [train[0][0], val[0][0]]
    found.append(pretraining("custom", pil_to_tensor, images, **options)[0][1])
    found.append(pretraining("custom", lambda x: x, images, pixels=True, **options)[0][1])
    h5 = str(tmp_path / "x.h5")
    found.append(pretraining("custom", pil_to_tensor, h5, "h5", **options)[0][1])
    found.append(resident_images(pretraining("custom", None, images, **options), "x")[0][0])
    for image in found:
        assert (image.int() - wanted.int()).abs().max() <= 1


def test_values_that_are_no_numbers_are_named(tmp_path):
    """They would become any level, without a word."""
    values = np.full((4, 5), 0.5, np.float32)
    values[1, 2], values[3, 0] = np.nan, np.inf
    Image.fromarray(values).save(tmp_path / "x.tiff")
    for pixels in (False, True):
        load, _ = readers(pixels=pixels, value_range=[0, 1])
        with pytest.raises(ReadError, match=r"x\.tiff.*2 of its values are not finite"):
            load(tmp_path / "x.tiff")
