# SPDX-License-Identifier: MIT
"""The recipe for one's own images: what follows from a folder, a size and a method."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from solo.args import own_images
from solo.args.pretrain import parse_cfg
from solo.errors import ConfigError
from solo.methods import METHODS

ROOT = Path(__file__).parents[2]
RECIPES = sorted(path.stem for path in (ROOT / "solo/recipes/any/method").glob("*.yaml"))
UNTOLD = {"base", "linear", "multilabel"}  # which are trained on no folder of own images


@pytest.fixture
def folder(tmp_path):
    """Three classes of twelve images."""
    for name in "abc":
        for index in range(12):
            path = tmp_path / "images" / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 40), (index * 20, 90, 30)).save(path)
    return tmp_path / "images"


@pytest.fixture
def flat(tmp_path):
    for index in range(40):
        path = tmp_path / "flat" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (50 + index, 40), (index * 5, 90, 30)).save(path)
    return tmp_path / "flat"


def composed(folder, *overrides, size=32):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "scripts/pretrain/custom"), version_base="1.2"):
        return compose("any", [f"data.path={folder}", f"image_size={size}", *overrides])


def test_every_method_has_a_recipe():
    assert set(RECIPES) == {str(name) for name in METHODS} - UNTOLD


@pytest.mark.parametrize("method", [name for name in RECIPES if name != "distill"])
def test_every_method_parses_and_builds(folder, method):
    cfg = parse_cfg(composed(folder, f"method={method}"))
    assert "auto" not in str(cfg.data), str(cfg.optimizer)
    with torch.device("meta"):
        model = METHODS[method](cfg)
    assert model.num_classes == 3
    assert {view.crop_size for view in cfg.augmentations} <= {32, 16}


def test_what_a_labelled_folder_means(folder):
    cfg = composed(folder)
    lines = own_images.settle(cfg)
    assert "36 in" in lines[0]
    assert "3 classes, 40x40 pixels" in lines[0]
    parse_cfg(cfg)
    assert (cfg.data.no_labels, cfg.data.val_path, cfg.data.val_fraction) == (False, None, 0.1)
    assert (cfg.data.format, cfg.data.resident_size) == ("resident", 40)
    assert cfg.optimizer.batch_size == 8  # the power of two in a quarter of 32
    assert cfg.augmentations[0].mean == pytest.approx([0.431, 0.353, 0.118], abs=1e-3)
    assert cfg.augmentations[0].gaussian_blur.prob == 0
    assert cfg.backbone.small_stem is True
    assert cfg.precision in ("32-true", "bf16-mixed", "16-mixed")
    assert own_images.settle(cfg) == []


def test_what_a_flat_folder_means(flat):
    cfg = composed(flat, size=224)
    lines = own_images.settle(cfg)
    parse_cfg(cfg)
    assert "no labels, several sizes, median side 40" in lines[0]
    assert (cfg.data.no_labels, cfg.data.val_fraction, cfg.data.num_classes) == (True, 0, 1)
    assert cfg.data.resident_size == 40
    assert cfg.augmentations[0].gaussian_blur.prob == 1.0
    assert cfg.backbone.small_stem is False


@pytest.mark.parametrize("gpu", [True, False])
@pytest.mark.parametrize(
    ("size", "small", "said"),
    [(32, True, False), (33, False, True), (64, False, True), (65, False, False)],
)
def test_the_stem_follows_the_size_on_every_machine(folder, monkeypatch, size, gpu, small, said):
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    cfg = composed(folder, "accelerator=auto", "precision=32-true", size=size)
    line = next(line for line in own_images.settle(cfg) if line.startswith("encoder: "))
    assert cfg.backbone.small_stem is small
    assert ("7x7" in line) is not small
    assert ("backbone.small_stem=True" in line) is said


@pytest.mark.parametrize(
    ("size", "patch", "local"),
    [(32, 4, 16), (64, 8, 32), (96, 12, 48), (128, 16, 64), (224, 16, 96)],
)
def test_patches_and_local_crops_of_a_vit(folder, size, patch, local):
    cfg = composed(folder, "method=dinov2", size=size)
    parse_cfg(cfg)
    assert (cfg.backbone.kwargs.img_size, cfg.backbone.kwargs.patch_size) == (size, patch)
    assert cfg.augmentations[2].crop_size == local


def test_a_vit_for_a_method_of_convolutional_encoders(folder):
    cfg = parse_cfg(composed(folder, "method=simclr", "backbone.name=vit_tiny", size=64))
    with torch.device("meta"):
        assert METHODS["simclr"](cfg).backbone.patch_embed.num_patches == 64


def test_no_folder_at_all_is_said_first():
    with pytest.raises(ConfigError, match=r"data.path is missing: write data.path=FOLDER"):
        parse_cfg(composed("???"))


def test_a_size_without_patches(folder):
    with pytest.raises(ConfigError, match=r"image_size=97 does not divide .* 96 does"):
        own_images.settle(composed(folder, "method=mae", size=97))


def test_one_image_a_class_leaves_nothing_to_validate(tmp_path):
    for name in "abcdefgh":
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "0.png")
    cfg = composed(tmp_path)
    assert "no class has two images" in own_images.settle(cfg)[1]
    parse_cfg(cfg)
    assert (cfg.data.val_fraction, cfg.data.num_classes) == (0, 8)


def test_what_is_given_stays(folder):
    cfg = composed(
        folder,
        "optimizer.batch_size=6",
        "data.format=image_folder",
        "precision=bf16-mixed",
        "backbone.small_stem=False",
        "scheduler.warmup_epochs=3",
    )
    parse_cfg(cfg)
    assert cfg.optimizer.batch_size == 6
    assert (cfg.data.format, cfg.data.resident_size) == ("image_folder", None)
    assert cfg.precision == "bf16-mixed"
    assert cfg.backbone.small_stem is False
    assert cfg.scheduler.warmup_epochs == 3


def test_images_that_do_not_fit_are_read_from_files(folder, monkeypatch):
    need = 36 * 3 * 40 * 40
    monkeypatch.setattr("solo.data.resident.memory.free_host_memory", lambda: 2 * need - 1)
    cfg = composed(folder)
    own_images.settle(cfg)
    assert cfg.data.format == "image_folder"
    monkeypatch.setattr("solo.data.resident.memory.free_host_memory", lambda: 2 * need)
    cfg = composed(folder)
    own_images.settle(cfg)
    assert cfg.data.format == "resident"


def test_large_queues_fit_the_images(folder):
    cfg = parse_cfg(composed(folder, "method=mocov2plus"))
    assert cfg.method_kwargs.queue_size == 32  # the multiple of 8 below 36
    cfg = parse_cfg(composed(folder, "method=swav"))
    assert cfg.method_kwargs.num_prototypes == 2


@pytest.mark.parametrize("method", ["supcon", "supervised", "s4l"])
def test_labels_that_are_not_there(flat, method):
    with pytest.raises(ConfigError, match=rf"method={method} learns from labels"):
        own_images.settle(composed(flat, f"method={method}"))


def test_a_missing_size(folder):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "scripts/pretrain/custom"), version_base="1.2"):
        cfg = compose("any", [f"data.path={folder}"])
    with pytest.raises(ConfigError, match="'image_size' is missing"):
        own_images.settle(cfg)
