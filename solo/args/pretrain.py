# SPDX-License-Identifier: MIT
"""Configuration of `main_pretrain.py`."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from solo.args import common, own_images, schema
from solo.args.check import fill
from solo.args.common import add_and_assert_lightning_cfg, add_and_assert_wandb_cfg
from solo.data import catalogue
from solo.errors import ConfigError
from solo.values import check_section

__all__ = [
    "add_and_assert_dataset_cfg",
    "add_and_assert_lightning_cfg",
    "add_and_assert_wandb_cfg",
    "parse_cfg",
]

# solo-learn's names for what the catalogue knows
_N_CLASSES_PER_DATASET = catalogue.class_counts()
_SUPPORTED_DATASETS = catalogue.single_label()


_DATA = tuple(
    f"data.{key}"
    for key in (
        *("val_path", "train_path", "val_fraction"),
        *("format", "no_labels", "fraction", "num_workers"),
    )
)


def add_and_assert_dataset_cfg(cfg: DictConfig) -> DictConfig:
    """Check `data.dataset` and set the defaults of the section `data`.

    Raises:
        ConfigError: when the dataset is missing or unknown.
    """
    common.dataset_of(cfg)
    fill(cfg, schema.Pretrain, *_DATA, "debug_augmentations")
    return cfg


def parse_cfg(cfg: DictConfig) -> DictConfig:
    """Check `cfg`, set defaults and derived keys in place, and return it; idempotent.

    Derived: `data.num_classes`, `data.num_large_crops`, `data.num_small_crops`, and the scaled
    learning rates (`optimizer.lr`; `optimizer.classifier_lr` when there is a validation set).

    Raises:
        ConfigError: for an unknown key, a wrong type or a value that is not supported.
        DataError: when the folder of a custom dataset does not exist.
    """
    own_images.settle(cfg)
    common.complete(cfg, schema.Pretrain, (*_DATA, "auto_umap", "quality"))
    info = common.dataset_of(cfg)
    common.set_num_classes(cfg, info)
    _set_num_crops(cfg)
    common.check_format(cfg, info)
    common.check_channels(cfg)
    given = cfg.data.val_path is not None or cfg.data.val_fraction > 0
    validated = given or info.path == "none"
    common.scale_lr(cfg, ["lr", "classifier_lr"] if validated else ["lr"])
    common.set_optimizer_kwargs(cfg)
    return cfg


def _set_num_crops(cfg: DictConfig) -> None:
    """Put the large crops (those of the largest size) first, and count them and the small ones."""
    entries = common.required(cfg, "augmentations")
    if not OmegaConf.is_list(entries) or not entries:
        raise ConfigError("'augmentations' must be a list with at least one pipeline")
    for index, entry in enumerate(entries):
        check_section(
            entry, schema.Augmentation, f"augmentations.{index}", cfg.get("strict") is True
        )
        for key in ("crop_size", "num_crops"):
            common.required(cfg, f"augmentations.{index}.{key}")
    size = max(entry.crop_size for entry in entries)
    order = sorted(range(len(entries)), key=lambda index: entries[index].crop_size != size)
    if order != list(range(len(entries))):
        entries = cfg.augmentations = [entries[index] for index in order]
    large = sum(entry.num_crops for entry in entries if entry.crop_size == size)
    cfg.data.num_large_crops = large
    cfg.data.num_small_crops = sum(entry.num_crops for entry in entries) - large
