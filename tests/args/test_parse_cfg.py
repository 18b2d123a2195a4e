# SPDX-License-Identifier: MIT
"""parse_cfg of pretraining and of linear evaluation: defaults, derived keys, refusals."""

import copy

import pytest
from omegaconf import OmegaConf

from solo.args import linear, pretrain
from solo.errors import ConfigError, DataError
from tests.programs.tiny import AUGMENTATION, LINEAR, PRETRAIN, config

pytestmark = pytest.mark.unit


def parsed(base=PRETRAIN, **overrides):
    parse = pretrain.parse_cfg if "augmentations" in base else linear.parse_cfg
    return parse(config(base, **overrides))


def test_pretrain_defaults():
    cfg = parsed(checkpoint={}, data={"dataset": "cifar10", "train_path": "x"})
    assert cfg.checkpoint == {
        "enabled": False,
        "dir": "trained_models",
        "frequency": 1,
        "keep_prev": False,
        "keep_last": 2,
        "every_n_steps": None,
        "pack": False,
        "monitor": None,
        "mode": None,
    }
    assert cfg.auto_resume == {"enabled": False, "max_hours": 36}
    assert cfg.auto_umap == {"enabled": False, "dir": "auto_umap", "frequency": 1}
    assert cfg.dali == {"device": "gpu", "encode_indexes_into_labels": False}
    wandb = {"enabled": False, "entity": None, "project": "solo-learn", "offline": False}
    assert cfg.wandb == wandb
    assert (cfg.seed, cfg.resume_from_checkpoint, cfg.strategy, cfg.num_nodes) == (5, None, None, 1)
    data = {k: cfg.data[k] for k in ("val_path", "format", "no_labels", "fraction")}
    assert data == {
        "val_path": None,
        "format": "image_folder",
        "no_labels": False,
        "fraction": -1,
    }
    assert cfg.debug_augmentations is False


@pytest.mark.parametrize(
    ("name", "classes"),
    [("cifar10", 10), ("cifar100", 100), ("stl10", 10), ("imagenet", 1000), ("imagenet100", 100)],
)
def test_number_of_classes_by_name(name, classes):
    assert parsed(data__dataset=name).data.num_classes == classes


def test_number_of_classes_is_the_number_of_folders(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    (tmp_path / "readme.txt").touch()
    assert parsed(data={"dataset": "custom", "train_path": str(tmp_path)}).data.num_classes == 3
    assert (
        parsed(data={"dataset": "custom", "train_path": str(tmp_path / "a")}).data.num_classes == 1
    )
    with pytest.raises(DataError, match=r"data.train_path: there is no folder"):
        parsed(data={"dataset": "custom", "train_path": str(tmp_path / "z")})


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (0, 2, 1)])
def test_crops_count_as_large_by_their_size_wherever_they_stand(order):
    entries = [
        {**AUGMENTATION, "crop_size": 32, "num_crops": 1, "grayscale": {"prob": 0.1}},
        {**AUGMENTATION, "crop_size": 18, "num_crops": 6},
        {**AUGMENTATION, "crop_size": 32, "num_crops": 1, "grayscale": {"prob": 0.2}},
    ]
    cfg = parsed(augmentations=[entries[index] for index in order], method="simclr")
    assert (cfg.data.num_large_crops, cfg.data.num_small_crops) == (2, 6)
    assert [entry.crop_size for entry in cfg.augmentations] == [32, 32, 18]
    assert [entry.grayscale.prob for entry in cfg.augmentations[:2]] == [0.1, 0.2]
    assert pretrain.parse_cfg(copy.deepcopy(cfg)) == cfg


@pytest.mark.parametrize(
    ("devices", "count"),
    [([0], 1), ([0, 1], 2), (2, 2), ("2", 2), ("0,3,", 2), ("auto", 1), (-1, 1)],
)
def test_learning_rates_scale_with_devices(devices, count):
    cfg = parsed(devices=devices, num_nodes=3, data__val_path="x")
    scale = 16 * count * 3 / 256
    assert cfg.optimizer.lr == pytest.approx(0.5 * scale)
    assert cfg.optimizer.classifier_lr == pytest.approx(0.5 * scale)
    assert cfg.optimizer.lr_as_written == 0.5
    assert cfg.optimizer.classifier_lr_as_written == 0.5


@pytest.mark.parametrize("devices", ["two", 0, -3, 1.5, True])
def test_devices_that_are_none(devices):
    with pytest.raises(ConfigError, match=r"'devices=.*must be a list"):
        parsed(devices=devices)


def test_classifier_lr_is_scaled_only_where_there_is_a_validation_set():
    cfg = parsed(data={"dataset": "imagenet100", "train_path": "x"})
    assert cfg.optimizer.classifier_lr == 0.5


@pytest.mark.parametrize("base", [PRETRAIN, LINEAR])
def test_parsing_twice_changes_nothing(base):
    cfg = parsed(base)
    once = copy.deepcopy(cfg)
    parse = pretrain.parse_cfg if base is PRETRAIN else linear.parse_cfg
    assert parse(cfg) == once
    assert parse(OmegaConf.create(OmegaConf.to_container(once))) == once


def test_scaled_and_written_rate_that_contradict():
    cfg = parsed()
    cfg.optimizer.lr = 3.0
    with pytest.raises(ConfigError, match=r"remove optimizer.lr_as_written"):
        pretrain.parse_cfg(cfg)


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("sgd", {}, {"momentum": 0.9}),
        ("sgd", {"momentum": 0.5, "nesterov": True}, {"momentum": 0.5, "nesterov": True}),
        (
            "lars",
            {"eta": 0.02},
            {"momentum": 0.9, "eta": 0.02, "clip_lr": False, "exclude_bias_n_norm": False},
        ),
        ("adam", {}, {}),
        ("adamw", {}, {"betas": [0.9, 0.999]}),
    ],
)
def test_optimizer_arguments(name, given, expected):
    cfg = parsed(optimizer__name=name, optimizer__kwargs=given)
    assert cfg.optimizer.kwargs == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer__name": "sdg"}, "'optimizer.name=sdg' is not supported. Did you mean 'sgd'"),
        ({"optimizer__kwargs": {"momentm": 1}}, "unknown key 'optimizer.kwargs.momentm' for sgd"),
        (
            {"optimizer__kwargs": {"clip_lr": True}},
            "unknown key 'optimizer.kwargs.clip_lr' for sgd",
        ),
        ({"data__dataset": "cifar"}, "Did you mean 'cifar10' or 'cifar100'"),
        ({"data__format": "dali"}, "write data.format=image_folder"),
        ({"data__format": "folder"}, "'data.format' must be one of"),
        ({"augmentations": []}, "'augmentations' must be a list"),
        ({"augmentations": [{"crop_size": 32}]}, "'augmentations.0.num_crops' is missing"),
        (
            {"augmentations": [{**AUGMENTATION, "grayscle": {"prob": 1}}]},
            "unknown key 'augmentations.0.grayscle'. Did you mean 'grayscale'",
        ),
        (
            {"augmentations": [{**AUGMENTATION, "grayscale": {"prb": 1}}]},
            "unknown key 'augmentations.0.grayscale.prb'. Did you mean 'prob'",
        ),
        ({"optimizer__lr": "fast"}, "'optimizer.lr' must be a number, not 'fast'"),
        ({"momentum__base_tua": 0.9}, "unknown key 'momentum.base_tua'. Did you mean 'base_tau'"),
        ({"shedule": 1}, "Did you mean 'scheduler'"),
    ],
)
def test_refused(change, message):
    with pytest.raises(ConfigError) as error:
        parsed(**change)
    assert message in str(error.value)


def test_dali_works_with_folders_of_images(tmp_path):
    data = {"dataset": "custom", "train_path": str(tmp_path), "format": "dali"}
    assert parsed(data=data).data.format == "dali"


def test_linear_defaults():
    cfg = parsed(LINEAR, data__val_path="None")
    assert cfg.data.augmentations.crop_size == cfg.data.image_size == 32  # the digits' own
    paths = {"data__train_path": ".", "data__val_path": ".", "data__dataset": "imagenet100"}
    assert parsed(LINEAR, **paths).data.augmentations == {
        "crop_size": 224,
        "crop_min_scale": 0.08,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }
    keys = ("auto_augment", "label_smoothing", "mixup", "cutmix", "eval_encoder")
    assert [cfg[key] for key in keys] == [False, 0.0, 0.0, 0.0, "online"]
    assert cfg.optimizer.lr == pytest.approx(0.5 * 16 / 256)
    assert cfg.data.val_path is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone__name": "resnet81"}, "Did you mean 'resnet18'"),
        ({"data": {"dataset": "cifar10", "train_path": "x"}}, "'data.val_path' is missing"),
        ({"eval_encoder": "both"}, "'eval_encoder' must be one of 'online', 'momentum'"),
        ({"mixupp": 1}, "Did you mean 'mixup'"),
    ],
)
def test_linear_refused(change, message):
    with pytest.raises(ConfigError) as error:
        parsed(LINEAR, **change)
    assert message in str(error.value)


def test_a_linear_configuration_is_complete_without_a_checkpoint():
    """Its sections and derived keys are there before anyone has said which encoder it is for."""
    cfg = config(LINEAR)
    del cfg["pretrained_feature_extractor"]
    assert linear.parse_cfg(cfg).data.num_classes == 10


def test_partial_sections_are_enough_for_the_helpers():
    cfg = OmegaConf.create({"data": {"dataset": "cifar10", "train_path": "x"}})
    assert pretrain.add_and_assert_dataset_cfg(cfg).data.fraction == -1
    assert pretrain.add_and_assert_wandb_cfg(cfg).wandb.project == "solo-learn"
    assert pretrain.add_and_assert_lightning_cfg(cfg).seed == 5
    cfg.data.dataset = "none"
    with pytest.raises(AssertionError):
        pretrain.add_and_assert_dataset_cfg(cfg)
