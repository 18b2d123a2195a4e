# SPDX-License-Identifier: MIT
"""Every program shows an encoder images as large, and normalised, as its run had them."""

import json
from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image

from solo.data.catalogue import info_of
from solo.data.classification_dataloader import folder_transform
from solo.data.shown import Shown, input_size, shown
from solo.errors import ConfigError
from solo.programs.evaluation import evaluation_loaders
from solo.programs.knn import knn
from solo.programs.linear import build_data, linear
from solo.programs.pretrain import pretrain
from solo.programs.umap import umap
from tests.programs.tiny import AUGMENTATION, LINEAR, PRETRAIN, config

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR = ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261))
OWN = ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))


def run(dataset, *sizes, **entry):
    views = [{"crop_size": size, **entry} for size in sizes]
    return {"data": {"dataset": dataset}, "augmentations": views}


@pytest.mark.parametrize(
    ("args", "size", "wanted"),
    [
        (run("custom", 24, mean=OWN[0], std=OWN[1]), None, Shown(24, *OWN)),
        (run("blobs", 24, mean=OWN[0], std=OWN[1]), None, Shown(24, *OWN)),  # registered nowhere
        (run("custom", 24), 48, Shown(48, *IMAGENET)),
        (run("cifar10", 32), None, Shown(32, *CIFAR)),
        (run("cifar10", 48), None, Shown(48, *CIFAR)),
        (None, None, Shown(224, *IMAGENET)),
    ],
)
def test_images_of_any_size_in_a_folder(args, size, wanted):
    """Which quality, pruning and feature maps look at; their statistics are the run's."""
    transform = folder_transform(args, size)
    for shape in ((40, 60), (32, 32)):
        image = transform(Image.new("RGB", shape, (51, 102, 204)))
        assert image.shape == (3, wanted.size, wanted.size)
        mean, std = (torch.tensor(v) for v in (wanted.mean, wanted.std))
        levels = (torch.tensor([0.2, 0.4, 0.8]) - mean) / std
        assert torch.allclose(image.amax((1, 2)), levels, atol=1e-5)
        assert torch.allclose(image.amin((1, 2)), levels, atol=1e-5)


def evaluated(dataset, size):
    """A linear evaluation."""
    return {"data": {"dataset": dataset, "augmentations": {"crop_size": size}}}


@pytest.mark.parametrize(
    ("dataset", "trained", "asked", "wanted"),
    [
        ("custom", None, {}, Shown(224, *IMAGENET)),
        ("custom", run("custom", 32), {}, Shown(32, *IMAGENET)),
        ("custom", run("custom", 96, 32, mean=OWN[0], std=OWN[1]), {}, Shown(96, *OWN)),
        ("custom", run("custom", 32), {"size": 64, "mean": OWN[0]}, Shown(64, OWN[0], IMAGENET[1])),
        ("custom", run("cifar10", 32), {}, Shown(32, CIFAR[0], (0.2470, 0.2435, 0.2616))),
        ("cifar10", run("cifar10", 32), {}, Shown(32, *CIFAR)),
        ("cifar10", run("cifar10", 48), {}, Shown(48, *CIFAR)),
        ("cifar10", run("imagenet", 224), {}, Shown(32, *CIFAR)),
        ("imagenet", run("imagenet", 160), {}, Shown(160, *IMAGENET)),
        ("custom", evaluated("custom", 48), {}, Shown(48, *IMAGENET)),
        ("cifar10", evaluated("cifar10", 224), {}, Shown(32, *CIFAR)),
    ],
)  # fmt: skip
def test_what_is_shown(dataset, trained, asked, wanted):
    assert shown(info_of(dataset), trained, **asked) == wanted
    if trained and trained["data"]["dataset"] == dataset and not asked:
        assert input_size(trained) == wanted.size


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Uniform images of 40x40 pixels in two classes."""
    monkeypatch.chdir(tmp_path)
    for split, n in (("train", 10), ("val", 4)):
        for label, level in (("dark", 51), ("light", 204)):
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            for i in range(n):
                pixels = np.full((40, 40, 3), level, np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return {"train_path": str(tmp_path / "train"), "val_path": str(tmp_path / "val")}


def check(images, size=24):
    """(N, 3, size, size); the levels are 0.2 and 0.8, normalised by the run's statistics."""
    assert images.shape[1:] == (3, size, size)
    mean, std = (torch.tensor(v)[:, None, None] for v in OWN)
    levels = (torch.tensor([0.2, 0.8])[:, None, None, None] - mean) / std
    for image in images:
        distances = [(image - level).abs().max() for level in levels]
        assert min(distances) < 0.02


@pytest.mark.parametrize("backbone", [{"name": "resnet18", "kwargs": {"width": 2}}, "vit"])
def test_a_run_on_small_images_of_ones_own(folders, backbone, tmp_path):
    if backbone == "vit":
        kwargs = {"img_size": 24, "patch_size": 8, "depth": 1, "embed_dim": 24, "num_heads": 2}
        backbone = {"name": "vit_tiny", "kwargs": kwargs}
    view = {**AUGMENTATION, "crop_size": 24, "mean": list(OWN[0]), "std": list(OWN[1])}
    data = {"dataset": "custom", "num_workers": 0, **folders}
    options = {"backbone": backbone, "data": data, "augmentations": [view]}
    options["method_kwargs"] = {**PRETRAIN["method_kwargs"], "queue_size": 16}
    trainer = pretrain(config(PRETRAIN, **options))
    check(next(iter(trainer.val_dataloaders))[0])
    folder = tmp_path / "trained_models" / "mocov2plus" / "0"
    given = {"backbone": backbone, "data": data, "pretrained_feature_extractor": str(folder)}
    trainer = linear(config(LINEAR, **given))
    for loader in (trainer.train_dataloader, trainer.val_dataloaders):
        check(next(iter(loader))[0])
    args = json.loads((tmp_path / "trained_models" / "linear" / "0" / "args.json").read_text())
    look = {"crop_size": 24, "crop_min_scale": 0.08, "mean": list(OWN[0]), "std": list(OWN[1])}
    assert args["data"]["augmentations"] == look
    arguments = Namespace(
        dataset="custom", train_data_path=folders["train_path"], val_data_path=folders["val_path"],
        data_format="image_folder", data_fraction=-1, no_labels=False, batch_size=4, num_workers=0,
        pretrained_checkpoint_dir=str(folder), eval_encoder="online", device="cpu", k=[1],
        temperature=[0.07], distance_function=["euclidean"], feature_type=["backbone"],
    )  # fmt: skip
    for loader in evaluation_loaders(arguments):
        check(next(iter(loader))[0])
    assert len(knn(arguments)) == 1
    if backbone["name"] == "vit_tiny":
        arguments.image_size = 32
        with pytest.raises(ConfigError, match="--image_size"):
            knn(arguments)
        with pytest.raises(ConfigError, match="--image_size"):
            umap(arguments)


def test_dali_shows_the_same(folders):
    pytest.importorskip("nvidia.dali")
    from solo.args.linear import parse_cfg

    look = {"crop_size": 24, "mean": list(OWN[0]), "std": list(OWN[1])}
    data = {"dataset": "custom", "num_workers": 1, "format": "dali", "augmentations": look}
    cfg = config(LINEAR, data={**data, **folders}, dali={"device": "cpu"})
    module = build_data(parse_cfg(cfg))
    module.trainer = Namespace(local_rank=0, global_rank=0, world_size=1, current_epoch=0)
    module.setup()
    for loader in (module.train_dataloader(), module.val_dataloader()):
        check(next(iter(loader))[0])


@pytest.mark.parametrize("key", ["image_size", "augmentations"])
def test_one_key_shows_another_size(folders, key):
    from solo.args.linear import parse_cfg

    asked = {"image_size": 16} if key == "image_size" else {"augmentations": {"crop_size": 16}}
    data = {"dataset": "custom", "num_workers": 0, **folders, **asked}
    train, val = build_data(parse_cfg(parse_cfg(config(LINEAR, data=data))))
    assert next(iter(train))[0].shape[2:] == next(iter(val))[0].shape[2:] == (16, 16)
