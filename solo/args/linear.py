# SPDX-License-Identifier: MIT
"""Configuration of `main_linear.py`: linear evaluation and fine-tuning."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

from solo.args import common, own_images, schema
from solo.args.check import fill, select
from solo.args.common import add_and_assert_lightning_cfg, add_and_assert_wandb_cfg
from solo.data import catalogue
from solo.data.shown import shown
from solo.errors import ConfigError
from solo.files.run_args import read_args

__all__ = [
    "add_and_assert_dataset_cfg",
    "add_and_assert_lightning_cfg",
    "add_and_assert_wandb_cfg",
    "parse_cfg",
]

# options of encoders that say what training started from
_START = ("weights", "pretrained", "pretrained_cfg", "progress")
# solo-learn's names for what the catalogue knows
_N_CLASSES_PER_DATASET = catalogue.class_counts()
_SUPPORTED_DATASETS = catalogue.single_label()


def add_and_assert_dataset_cfg(cfg: DictConfig) -> DictConfig:
    """Check `data.dataset`, `data.train_path` and `data.val_path`; set the defaults of `data`.

    Raises:
        ConfigError: when the dataset is unknown or a path is missing (`digits` needs none).
    """
    keys = [
        "val_path",
        "train_path",
        "val_fraction",
        "format",
        "fraction",
        "num_workers",
        "image_size",
        "skip_unreadable",
    ]
    common.dataset_cfg(cfg, schema.LinearData, keys)
    if catalogue.info_of(cfg.data.dataset).path != "none":
        common.required(cfg, "data.train_path")
        if not cfg.data.val_fraction:
            common.required(cfg, "data.val_path")
    return cfg


def parse_cfg(cfg: DictConfig) -> DictConfig:
    """Check `cfg`, set defaults and derived keys in place, and return it; idempotent.

    Derived: `data.num_classes` and the scaled `optimizer.lr`. What describes the encoder is taken
    from the run that trained it, where it is not given.

    Raises:
        ConfigError: for an unknown key, a wrong type or a value that is not supported.
        DataError: when the folder of a custom dataset does not exist.
    """
    OmegaConf.set_struct(cfg, False)
    path = select(cfg, "pretrained_feature_extractor")
    trained = None if path is None else read_args(path)
    own_images.settle_evaluation(cfg, trained or {})
    common.check_keys(cfg, schema.Linear)
    common.run_sections(cfg)
    add_and_assert_dataset_cfg(cfg)
    add_and_assert_wandb_cfg(cfg)
    add_and_assert_lightning_cfg(cfg)
    _inherit(cfg, trained or {})
    _check_backbone(cfg)
    fill(cfg, "backbone", schema.Backbone)
    if "pretrained_feature_extractor" not in cfg:
        raise ConfigError("the key 'pretrained_feature_extractor' is missing: give a checkpoint")
    keys = ["pretrain_method", "eval_encoder", "auto_augment", "label_smoothing", "mixup", "cutmix"]
    fill(cfg, "", schema.Linear, keys)
    _set_images(cfg)
    common.set_num_classes(cfg)
    common.check_format(cfg)
    common.scale_lr(cfg, ["lr"])
    common.set_optimizer_kwargs(cfg)
    return cfg


def _set_images(cfg: DictConfig) -> None:
    """`data.image_size` and `data.augmentations` become what is shown to the encoder."""
    fill(cfg, "data.augmentations", schema.LinearAugmentations)
    path, asked = select(cfg, "pretrained_feature_extractor"), cfg.data.augmentations
    images = shown(
        cfg.data.dataset,
        None if path is None else read_args(path),
        size=select(cfg, "data.image_size") or asked.crop_size,
        mean=asked.mean,
        std=asked.std,
    )
    cfg.data.image_size = asked.crop_size = images.size
    asked.mean, asked.std = list(images.mean), list(images.std)


def _inherit(cfg: DictConfig, trained: dict[str, Any]) -> None:
    """The encoder as its run built it: `backbone`, and the method that a ViT's heads depend on.

    What the configuration says itself stays, and counts alone where it names another encoder.
    """
    built = trained.get("backbone") or {}
    name = select(cfg, "backbone.name")
    if not built.get("name") or name not in (None, built["name"]):
        return
    kwargs = {k: v for k, v in (built.get("kwargs") or {}).items() if k not in _START}
    given = select(cfg, "backbone.kwargs") or {}
    small = select(cfg, "backbone.small_stem")
    cfg.backbone = {
        "name": built["name"],
        "kwargs": {**kwargs, **given},
        "small_stem": built.get("small_stem") if small is None else small,
    }
    if select(cfg, "pretrain_method") is None:
        cfg.pretrain_method = trained.get("method") or trained.get("pretrain_method")


def _check_backbone(cfg: DictConfig) -> None:
    from solo.backbones import get_builder

    get_builder(common.required(cfg, "backbone.name"))
