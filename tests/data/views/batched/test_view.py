# SPDX-License-Identifier: MIT
"""Whole pipelines: equal to the per-sample ones for the same parameters, seeded, compiled."""

import math
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from PIL import ImageFilter, ImageOps
from torchvision import transforms as T
from torchvision.transforms import functional as TF

from solo.data.catalogue import info_of
from solo.data.pretrain_dataloader import build_transform_pipeline
from solo.data.views.batched import BatchedView, CompiledOrPlain, build_views
from solo.data.views.batched.colour import ORDERS, ColorJitter
from solo.data.views.batched.crop import crop_boxes
from solo.data.views.batched.operation import change_chosen
from solo.data.views.batched.view import _chunk
from solo.errors import ConfigError
from tests.data.conftest import augmentation
from tests.data.views.batched.conftest import batch, numbers, pil, tensor

pytestmark = pytest.mark.unit
RECIPES = Path(__file__).parents[4] / "scripts" / "pretrain"
APPLY = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)


def pillow_view(view, image, u, entry):
    """The levels of one image by Pillow, with the parameters that the numbers u (draws,) stand for.

    Column by column: flip, crop (22), rotation (2), jitter (6), grey, blur (2), solarize, equalize.
    """
    _, crop, turn, jitter, grey, blur, solar, equal, late = u.split([1, 22, 2, 6, 1, 2, 1, 1, 1])
    scale = entry["rrc"]["crop_min_scale"], entry["rrc"]["crop_max_scale"]
    box = [int(v) for v in crop_boxes(crop[None], image.height, image.width, scale)]
    size = [entry["crop_size"]] * 2
    image = TF.resized_crop(image, *box, size, T.InterpolationMode.BICUBIC)
    if turn[0] < entry["rotation"]["prob"]:
        angle = entry["rotation"]["degrees"] * (2 * float(turn[1]) - 1)
        image = TF.rotate(image, angle, T.InterpolationMode.BILINEAR)
    (op,) = (op for op in view.operations if isinstance(op, ColorJitter))
    changed, order, factors, turns = op.drawn(jitter[None])
    if changed:
        values = [*factors[0].tolist(), float(turns)]
        for kind in ORDERS[int(order)]:
            image = APPLY[kind](image, values[kind])
    if grey < entry["grayscale"]["prob"]:
        image = TF.to_grayscale(image, 3)
    if blur[0] < entry["gaussian_blur"]["prob"]:
        image = image.filter(ImageFilter.GaussianBlur(0.1 + 1.9 * float(blur[1])))
    if solar < entry["solarization"]["prob"]:
        image = ImageOps.solarize(image)
    if equal < entry["equalization"]["prob"]:
        image = ImageOps.equalize(image)
    return TF.hflip(image) if late < entry["horizontal_flip"]["prob"] else image


def test_whole_pipeline_equals_pillow_in_order():
    """A level of difference after the crop may become many (a threshold, a histogram): most
    pixels must be equal, and the rest must not be far off on the average."""
    entry = augmentation(rotation={"prob": 0.3, "degrees": 15}, crop_size=24)
    entry["solarization"] = entry["equalization"] = {"prob": 0.3}
    view = BatchedView("custom", entry)
    images, u = batch(48, 40, 32), numbers(48, view.draws, seed=5)
    ours = view.levels(images, u)
    wanted = torch.stack(
        [tensor(pillow_view(view, pil(i), n, entry)) for i, n in zip(images, u, strict=True)]
    )
    off = (ours - wanted).abs()
    assert off.mean() < 0.15
    assert (off > 2).float().mean() < 0.01


def test_mean_view_is_that_of_the_per_sample_pipeline():
    """Means and spreads over many draws agree with torchvision's, operations of chance included."""
    entry = augmentation(solarization={"prob": 0.3}, equalization={"prob": 0.2})
    image = batch(3)[2]
    per_sample = build_transform_pipeline("cifar10", entry)
    theirs = torch.stack([per_sample(pil(image)) for _ in range(600)])
    view = BatchedView("cifar10", entry)
    ours = view(image.expand(1800, -1, -1, -1), numbers(1800, view.draws, seed=1))
    assert ours.shape[1:] == theirs.shape[1:]
    for statistic in (
        lambda v: v.mean((1, 2, 3)),
        lambda v: v.std((1, 2, 3)),
        lambda v: v[:, 0].mean((1, 2)) - v[:, 2].mean((1, 2)),
        lambda v: (v[..., 1:] - v[..., :-1]).abs().mean((1, 2, 3)),  # blur
    ):
        a, b = statistic(ours), statistic(theirs)
        error = math.sqrt(a.var() / len(a) + b.var() / len(b))
        assert abs(float(a.mean() - b.mean())) < 4.5 * error
        assert 0.9 < float(a.std() / b.std()) < 1.1


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "digits", "custom"])
def test_normalised_as_the_dataset_asks(dataset):
    entry = {"crop_size": 32, "num_crops": 1, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    image = batch(2)[1:]
    view = BatchedView(dataset, entry)
    wanted = build_transform_pipeline(dataset, entry)(pil(image[0]))
    assert torch.allclose(view(image, numbers(1, view.draws))[0], wanted, atol=1e-5)
    assert ("mean" in entry) == (info_of(dataset).mean is None or "mean" in entry)


def test_flip_happens_with_its_probability_and_only_then():
    images = batch(4)
    entry = {"crop_size": 32, "num_crops": 1, "horizontal_flip": {"prob": 0.5}}
    view = BatchedView("cifar10", entry)
    u = torch.tensor([[0.1], [0.6], [0.49], [0.51]])
    ours = view.levels(images, u)
    assert view.draws == 1
    assert torch.equal(ours[[0, 2]], images[[0, 2]].flip(-1).float())
    assert torch.equal(ours[[1, 3]], images[[1, 3]].float())


def test_views_are_many_and_follow_from_the_generator():
    entries = [augmentation(num_crops=2), augmentation(num_crops=3, crop_size=18)]
    views, images = build_views("cifar10", entries), batch(6)
    made = views(images, torch.Generator().manual_seed(1))
    assert [tuple(v.shape) for v in made] == [(6, 3, 32, 32)] * 2 + [(6, 3, 18, 18)] * 3
    assert not torch.equal(made[0], made[1])
    again = views(images, torch.Generator().manual_seed(1))
    other = views(images, torch.Generator().manual_seed(2))
    assert all(torch.equal(a, b) for a, b in zip(made, again, strict=True))
    assert not torch.equal(made[0], other[0])
    assert not any(v.requires_grad for v in made)


def test_chunks_change_nothing(monkeypatch):
    views, images = build_views("cifar10", [augmentation()]), batch(12)
    whole = views(images, torch.Generator().manual_seed(1))
    monkeypatch.setattr("solo.data.views.batched.view.CHUNK_VALUES", 4 * 3 * 32 * 32)
    parts = views(images, torch.Generator().manual_seed(1))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(whole, parts, strict=True))


@pytest.mark.parametrize("hue", [0.2, 0.0])
@pytest.mark.parametrize("n", [1, 40])
def test_work_that_is_left_out_changes_nothing(monkeypatch, n, hue):
    entry = augmentation(rotation={"prob": 0.3, "degrees": 15}, num_crops=1)
    entry["color_jitter"]["hue"] = hue
    view, images = BatchedView("cifar10", entry), batch(n)
    for seed in range(1 if n > 1 else 20):
        u = numbers(n, view.draws, seed=seed)
        quick = view.levels(images, u)
        with monkeypatch.context() as patched:
            for module in ("operation", "colour", "filters", "crop"):
                patched.setattr(f"solo.data.views.batched.{module}.may_look", lambda x: False)
            assert torch.equal(view.levels(images, u), quick)


def test_only_chosen_images_cost_work():
    sizes = []

    def change(x, add):
        sizes.append(len(x))
        return x + add[:, None, None, None]

    x, add = torch.zeros(4, 3, 2, 2), torch.arange(4.0)
    some = change_chosen(torch.tensor([True, False, False, True]), change, x, add)
    assert some.amax((1, 2, 3)).tolist() == [0, 0, 0, 3]
    assert change_chosen(torch.zeros(4, dtype=torch.bool), change, x, add) is x
    change_chosen(torch.ones(4, dtype=torch.bool), change, x, add)
    assert sizes == [2, 4]
    assert not x.any()


@pytest.mark.parametrize(
    ("n", "side", "size"), [(256, 32, 128), (96, 32, 96), (193, 32, 170), (5, 224, 1)]
)
def test_chunks_are_alike_where_that_costs_little(n, side, size):
    assert _chunk(n, 3 * side * side) == size


@pytest.mark.parametrize(
    "path", sorted(RECIPES.glob("*/augmentations/*.yaml")), ids=lambda p: f"{p.parts[-3]}-{p.stem}"
)
def test_every_recipe_has_its_batched_views(path):
    entries = yaml.safe_load(path.read_text())
    views = build_views("custom", entries)
    side = 40 if max(entry["crop_size"] for entry in entries) < 100 else 230
    made = views(batch(2, side, side), torch.Generator().manual_seed(0))
    sizes = [entry["crop_size"] for entry in entries for _ in range(entry["num_crops"])]
    assert [v.shape[-1] for v in made] == sizes
    assert all(v.isfinite().all() for v in made)


def test_bad_entries_are_refused():
    with pytest.raises(ConfigError, match=r"unknown key 'solarisation'"):
        build_views("cifar10", [{"crop_size": 8, "num_crops": 1, "solarisation": {"prob": 1}}])


def test_compiler_that_fails_is_one_warning_and_equal_results(monkeypatch):
    def broken(function, **options):
        def call(*args):
            raise RuntimeError("no C++ compiler found\nand much more")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    images = batch(4)
    plain = build_views("cifar10", [augmentation()])(images, torch.Generator().manual_seed(1))
    views = build_views("cifar10", [augmentation()], compiled=True)
    with pytest.warns(
        UserWarning, match=r"performance.compile.*RuntimeError: no C.. compiler"
    ) as seen:
        first = views(images, torch.Generator().manual_seed(1))
    assert len(seen) == 1
    assert "and much more" not in str(seen[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = views(images, torch.Generator().manual_seed(1))
    for made in (first, second):
        assert all(torch.equal(a, b) for a, b in zip(made, plain, strict=True))


def test_an_error_of_the_function_itself_is_not_the_compilers(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)

    def wrong(x):
        raise ValueError("mine")

    with pytest.raises(ValueError, match=r"mine"):
        CompiledOrPlain(wrong, "test")(1)


@pytest.mark.slow
def test_compiled_views_equal_eager_ones():
    entry = augmentation(rotation={"prob": 0.3, "degrees": 15}, num_crops=1)
    images = batch(32)
    eager = build_views("cifar10", [entry])(images, torch.Generator().manual_seed(1))[0]
    views = build_views("cifar10", [entry], compiled=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="performance.compile")
        compiled = views(images, torch.Generator().manual_seed(1))[0]
    off = (eager - compiled).abs()
    level = 1 / (255 * 0.24)
    assert (off > 1.5 * level).float().mean() < 0.005
    assert (off > 0.5 * level).float().mean() < 0.02


@pytest.mark.gpu
def test_views_on_a_gpu_equal_those_on_the_cpu():
    entry = augmentation(rotation={"prob": 0.3, "degrees": 15}, num_crops=1)
    view, images = BatchedView("cifar10", entry), batch(64)
    u = numbers(64, view.draws)
    on_cpu = view.levels(images, u)
    on_gpu = view.cuda().levels(images.cuda(), u.cuda()).cpu()
    off = (on_cpu - on_gpu).abs()
    assert off.mean() < 0.15
    assert (off > 2).float().mean() < 0.01
