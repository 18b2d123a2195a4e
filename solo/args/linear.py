# SPDX-License-Identifier: MIT
"""Configuration of `main_linear.py`: linear evaluation and fine-tuning."""

from __future__ import annotations

from omegaconf import DictConfig

from solo.args import common, schema
from solo.args.check import fill
from solo.args.common import add_and_assert_lightning_cfg, add_and_assert_wandb_cfg
from solo.data import catalogue
from solo.errors import ConfigError

__all__ = [
    "add_and_assert_dataset_cfg",
    "add_and_assert_lightning_cfg",
    "add_and_assert_wandb_cfg",
    "parse_cfg",
]

# solo-learn's names for what the catalogue knows
_N_CLASSES_PER_DATASET = catalogue.class_counts()
_SUPPORTED_DATASETS = catalogue.single_label()


def add_and_assert_dataset_cfg(cfg: DictConfig) -> DictConfig:
    """Check `data.dataset`, `data.train_path` and `data.val_path`; set the defaults of `data`.

    Raises:
        ConfigError: when the dataset is unknown or a path is missing (`digits` needs none).
    """
    keys = ["val_path", "train_path", "format", "fraction", "num_workers", "image_size"]
    common.dataset_cfg(cfg, schema.LinearData, keys)
    if catalogue.info_of(cfg.data.dataset).path != "none":
        common.required(cfg, "data.train_path")
        common.required(cfg, "data.val_path")
    size = cfg.data.image_size
    if size is not None and (size < 1 or cfg.data.format == "dali" or cfg.get("auto_augment")):
        raise ConfigError(
            f"data.image_size={size}: a positive side in pixels, which neither data.format=dali "
            f"nor auto_augment takes; leave it out for the data set's own size."
        )
    return cfg


def parse_cfg(cfg: DictConfig) -> DictConfig:
    """Check `cfg`, set defaults and derived keys in place, and return it; idempotent.

    Derived: `data.num_classes` and the scaled `optimizer.lr`.

    Raises:
        ConfigError: for an unknown key, a wrong type or a value that is not supported.
        DataError: when the folder of a custom dataset does not exist.
    """
    common.check_keys(cfg, schema.Linear)
    common.run_sections(cfg)
    add_and_assert_dataset_cfg(cfg)
    add_and_assert_wandb_cfg(cfg)
    add_and_assert_lightning_cfg(cfg)
    _check_backbone(cfg)
    fill(cfg, "backbone", schema.Backbone)
    if "pretrained_feature_extractor" not in cfg:
        raise ConfigError("the key 'pretrained_feature_extractor' is missing: give a checkpoint")
    keys = ["pretrain_method", "eval_encoder", "auto_augment", "label_smoothing", "mixup", "cutmix"]
    fill(cfg, "", schema.Linear, keys)
    fill(cfg, "data.augmentations", schema.LinearAugmentations)
    common.set_num_classes(cfg)
    common.check_format(cfg)
    common.scale_lr(cfg, ["lr"])
    common.set_optimizer_kwargs(cfg)
    return cfg


def _check_backbone(cfg: DictConfig) -> None:
    from solo.backbones import get_builder

    get_builder(common.required(cfg, "backbone.name"))
