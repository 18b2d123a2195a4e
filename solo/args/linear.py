# SPDX-License-Identifier: MIT
"""Configuration of `main_linear.py`: linear evaluation and fine-tuning."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

from solo.args import common, own_images, schema
from solo.args.check import fill, select
from solo.args.common import add_and_assert_lightning_cfg, add_and_assert_wandb_cfg
from solo.data import catalogue
from solo.data.shown import channels_of, shown
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


_DATA = tuple(
    f"data.{key}"
    for key in (
        *("val_path", "train_path", "format", "fraction", "num_workers", "image_size"),
        *("augment", "skip_unreadable", "fraction_of", "no_labels", "val_fraction"),
    )
)
_KEYS = (
    *("backbone", "data.augmentations", "pretrain_method", "eval_encoder"),
    *("auto_augment", "label_smoothing", "mixup", "cutmix"),
)


def add_and_assert_dataset_cfg(cfg: DictConfig) -> DictConfig:
    """Check `data.dataset`, `data.train_path` and `data.val_path`; set the defaults of `data`.

    Raises:
        ConfigError: when the dataset is unknown or a path is missing (`digits` needs none).
    """
    fill(cfg, schema.Linear, *_DATA, "debug_augmentations")
    _dataset_of(cfg)
    return cfg


def _dataset_of(cfg: DictConfig) -> catalogue.DatasetInfo:
    info = common.dataset_of(cfg)
    if cfg.data.no_labels:
        raise ConfigError(
            "data.no_labels=True: a classifier is trained and judged by labels. Leave it out; "
            "images without labels are for main_pretrain.py"
        )
    if info.path != "none":
        common.required(cfg, "data.train_path")
        if not cfg.data.val_fraction:
            common.required(cfg, "data.val_path")
    return info


def parse_cfg(cfg: DictConfig) -> DictConfig:
    """Check `cfg`, set defaults and derived keys in place, and return it; idempotent.

    Derived: `data.num_classes` and the scaled `optimizer.lr`. What describes the encoder is taken
    from the run that trained it, where it is not given.

    Raises:
        ConfigError: for an unknown key, a wrong type or a value that is not supported.
        DataError: when the folder of a custom dataset does not exist.
    """
    OmegaConf.set_struct(cfg, False)
    common.check_given(cfg, schema.Linear)
    path = select(cfg, "pretrained_feature_extractor")
    trained = (None if path is None else read_args(path)) or {}
    own_images.settle_evaluation(cfg, trained)
    _inherit(cfg, trained)
    common.complete(cfg, schema.Linear, (*_DATA, *_KEYS))
    info = _dataset_of(cfg)
    _check_backbone(cfg)
    _set_images(cfg, info)
    common.set_num_classes(cfg, info)
    common.check_format(cfg, info)
    _check_channels(cfg)
    common.scale_lr(cfg, ["lr"])
    common.set_optimizer_kwargs(cfg)
    return cfg


def _check_channels(cfg: DictConfig) -> None:
    common.check_channels(cfg)
    channels = channels_of(cfg)
    common.require_statistics(cfg.data.augmentations, channels, "data.augmentations")
    if channels != 3 and select(cfg, "auto_augment"):
        raise ConfigError(f"auto_augment is for three channels, not in_chans={channels}")


def _set_images(cfg: DictConfig, info: catalogue.DatasetInfo) -> None:
    """`data.image_size` and `data.augmentations` become what is shown to the encoder."""
    path, asked = select(cfg, "pretrained_feature_extractor"), cfg.data.augmentations
    images = shown(
        info,
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
    given = select(cfg, "backbone.kwargs") or {}
    readable = OmegaConf.is_dict(given) or isinstance(given, dict)
    if not built.get("name") or name not in (None, built["name"]) or not readable:
        return
    kwargs = {k: v for k, v in (built.get("kwargs") or {}).items() if k not in _START}
    small = select(cfg, "backbone.small_stem")
    own = cfg.backbone if OmegaConf.is_dict(cfg.get("backbone")) else {}
    cfg.backbone = {
        **own,
        "name": built["name"],
        "kwargs": {**kwargs, **given},
        "small_stem": built.get("small_stem") if small is None else small,
    }
    if select(cfg, "pretrain_method") is None:
        cfg.pretrain_method = trained.get("method") or trained.get("pretrain_method")


def _check_backbone(cfg: DictConfig) -> None:
    from solo.backbones import get_builder

    get_builder(common.required(cfg, "backbone.name"))
