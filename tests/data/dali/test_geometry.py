# SPDX-License-Identifier: MIT
"""Boxes, crops and resizes of DALI pipelines against torchvision and Pillow."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torchvision import transforms as T
from torchvision.transforms import functional as TF

pytest.importorskip("nvidia.dali")

from nvidia.dali import types

from solo.data.classification_dataloader import build_custom_pipeline
from solo.data.dali import geometry
from solo.data.views.batched.crop import crop_boxes
from tests.data.conftest import needs_pillow_13
from tests.data.dali.graphs import run
from tests.data.pictures import textured

pytestmark = pytest.mark.dali
SHAPES = [(32, 32), (375, 500), (500, 333), (20, 160), (300, 30), (97, 64), (40, 600)]
MODES = {T.InterpolationMode.BILINEAR: types.INTERP_LINEAR,
         T.InterpolationMode.BICUBIC: types.INTERP_CUBIC}  # fmt: skip


def boxes_of(shapes, u, scale=(0.08, 1.0), fallback="center"):
    """(N, 4) top, left, height, width that DALI draws."""

    def graph(shape, u):
        return geometry.crop_box(shape[0], shape[1], u, scale, fallback)

    pairs = run(graph, [np.int32(shape) for shape in shapes], list(u.numpy()))
    return np.array([np.concatenate(pair) for pair in pairs])


@pytest.mark.parametrize("fallback", ["center", "random"])
def test_boxes_are_those_of_the_batched_views(fallback):
    u = torch.rand(300, 22, generator=torch.Generator().manual_seed(3))
    for scale in ((0.08, 1.0), (0.6, 1.0)):
        shapes = [SHAPES[i % len(SHAPES)] for i in range(300)]
        ours = boxes_of(shapes, u, scale, fallback)
        theirs = [
            torch.stack(crop_boxes(u[i : i + 1], *shapes[i], scale, fallback), 1)[0].int().tolist()
            for i in range(300)
        ]
        assert (ours == np.array(theirs)).all(1).mean() > 0.99  # a sum may round either way
        assert np.abs(ours - np.array(theirs)).max() <= 1


@pytest.mark.parametrize("shape", [(375, 500), (60, 480), (640, 96)])
def test_boxes_follow_torchvisions_law(shape):
    n = 2000
    ours = boxes_of([shape] * n, torch.rand(n, 22, generator=torch.Generator().manual_seed(5)))
    image = torch.zeros(3, *shape)
    torch.manual_seed(6)
    theirs = np.array(
        [T.RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(n)]
    )
    for look in (
        *(lambda b, i=i: b[:, i] for i in range(4)),
        lambda b: b[:, 2] * b[:, 3],
        lambda b: b[:, 3] / b[:, 2],
    ):
        assert ks_2samp(look(ours), look(theirs)).pvalue > 1e-3


def test_operator_draws_by_the_same_law():
    """The numbers of a pipeline are DALI's own."""
    n = 2000
    pairs = run(
        lambda shape: geometry.crop_box(
            shape[0], shape[1], geometry.drawn_box(), (0.08, 1.0), "center"
        ),
        [np.int32((375, 500))] * n,
    )
    ours = np.array([np.concatenate(pair) for pair in pairs])
    image = torch.zeros(3, 375, 500)
    theirs = np.array(
        [T.RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(n)]
    )
    for i in range(4):
        assert ks_2samp(ours[:, i], theirs[:, i]).pvalue > 1e-3


def inside(off, shrink):
    """Differences without the outermost pixels, where DALI repeats the edge of the crop."""
    rows, columns = (int(np.ceil(2 * max(1, 1 / s))) + 1 for s in shrink)
    return off[rows:-rows, columns:-columns]


@needs_pillow_13
@pytest.mark.parametrize("mode", MODES)
def test_equal_pixels_for_equal_boxes(mode):
    size = 64
    images = [textured(*shape, seed=i) for i, shape in enumerate(SHAPES)]
    u = torch.rand(len(images), 22, generator=torch.Generator().manual_seed(8))
    ours = run(
        lambda x, u: geometry.resized_crop(
            x, u, size, (0.08, 1.0), "center", interpolation=MODES[mode]
        ),
        images,
        list(u.numpy()),
    )
    boxes = boxes_of([image.shape[:2] for image in images], u)
    for image, got, box in zip(images, ours, boxes.tolist(), strict=True):
        wanted = np.array(TF.resized_crop(Image.fromarray(image), *box, [size, size], mode))
        off = np.abs(got.astype(int) - wanted)
        middle = inside(off, (box[2] / size, box[3] / size))
        assert middle.max() <= 2
        assert (middle > 1).mean() < 1e-3
        assert off.mean() < 0.5


ODD = [
    (375, 500),
    (500, 313),
    (333, 501),
    (257, 256),
    (301, 300),
    (256, 479),
    (150, 150),
    (90, 720),
]


@needs_pillow_13
def test_validation_views_are_those_of_image_folder():
    """Odd margins, a longer side that is no whole number, images that grow."""
    images = [textured(*shape, seed=i) for i, shape in enumerate(ODD)]

    def graph(x):
        return geometry.center_crop(geometry.shorter_side_resized(x, 256, types.INTERP_LINEAR), 224)

    transform = T.Compose(build_custom_pipeline()["T_val"].transforms[:2])
    for image, got in zip(images, run(graph, images), strict=True):
        wanted = np.array(transform(Image.fromarray(image)))
        assert got.shape == wanted.shape
        assert np.abs(got.astype(int) - wanted).max() <= 1


@pytest.mark.parametrize("spare", range(6))
def test_an_odd_margin_is_split_as_torchvision_does(spare):
    image = textured(20 + spare, 21 + spare)
    (got,) = run(lambda x: geometry.center_crop(x, 20), [image])
    assert np.array_equal(got, np.array(TF.center_crop(Image.fromarray(image), [20, 20])))
