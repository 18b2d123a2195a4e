# SPDX-License-Identifier: MIT
"""Parts of `parse_cfg` that pretraining and linear evaluation share."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from math import isclose
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from solo import extensions
from solo.args import schema
from solo.args.check import check, fill, select
from solo.data import catalogue
from solo.data.shown import channels_of
from solo.data.views.augmentation_keys import checked_augmentation
from solo.errors import ConfigError, DataError, did_you_mean
from solo.registry import import_plugins
from solo.values import accepts, check_section

AUTO = "auto"  # a value that the program chooses
# what the parsers write into a configuration that leaves it out
TRAINER_KEYS = ("seed", "resume_from_checkpoint", "strategy")
LOGGERS = ("wandb", "tensorboard")
WRITTEN = (
    *("checkpoint", "auto_resume", "dali", *LOGGERS, *TRAINER_KEYS),
    *("num_nodes", "optimizer.kwargs", "debug_augmentations"),
)


def required(cfg: DictConfig, key: str):
    """The value at the dotted `key` of a configuration, which must be there.

    Raises:
        ConfigError: when it is missing, null or `???`.
    """
    try:
        value = OmegaConf.select(cfg, key, throw_on_missing=True)
    except OmegaConfBaseException:
        value = None
    if value is None:
        raise ConfigError(f"the key '{key}' is missing: add it to the YAML or as ++{key}=…")
    return value


def choice(cfg: DictConfig, key: str, options: Iterable[str]) -> str:
    """The value at `key`, which must be one of `options`.

    Raises:
        ConfigError: with the nearest valid name.
    """
    value, options = required(cfg, key), list(options)
    if value not in options:
        raise ConfigError(f"'{key}={value}' is not supported. {did_you_mean(value, options)}")
    return value


def check_given(cfg: DictConfig, program: type) -> None:
    """Check what `cfg` says, before anything is chosen by it; what says `auto` says nothing yet.

    Args:
        cfg: the whole configuration.
        program: its schema.

    Raises:
        ConfigError: for the first unknown key or wrong type, with its dotted name.
    """
    import_plugins(select(cfg, "imports"))
    given = OmegaConf.create(_without_auto(OmegaConf.to_container(cfg, resolve=False)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `complete` looks at it again, and warns
        check(given, program, extensions.sections())


def _without_auto(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    return {key: _without_auto(value) for key, value in node.items() if value != AUTO}


def complete(cfg: DictConfig, program: type, keys: Iterable[str]) -> None:
    """Check all keys and types of `cfg`, its extensions' sections too, and set the defaults.

    Args:
        cfg: the whole configuration; changed in place.
        program: its schema.
        keys: those that get their defaults beside `WRITTEN`, see `fill`.
    """
    OmegaConf.set_struct(cfg, False)
    import_plugins(select(cfg, "imports"))
    check(cfg, program, extensions.sections())
    _check_name(str(select(cfg, "name", "-")))
    for extension in extensions.active(cfg):
        extension.parse(cfg)
    fill(cfg, program, *WRITTEN, *keys)
    if cfg.data.num_workers is None:
        cfg.data.num_workers = default_workers(count_devices(cfg))


# what checkpoints add to a run's name must fit into the 255 bytes of a file name, too
LONGEST_NAME = 180


def _check_name(name: str) -> None:
    said = f"'name={name if len(name) < 80 else name[:77] + '...'}' becomes part of file names"
    if "/" in name:
        raise ConfigError(f"{said}: leave out the slashes")
    if not name.strip() or not name.isprintable():
        raise ConfigError(f"{said}: it must have letters, and no line breaks")
    if len(name.encode()) > LONGEST_NAME:
        raise ConfigError(f"{said}: it may have {LONGEST_NAME} bytes, not {len(name.encode())}")


def dataset_of(cfg: DictConfig) -> catalogue.DatasetInfo:
    """What is known of `data.dataset`.

    Raises:
        ConfigError: it is missing or unknown, or has several labels per image, which only
            `method: multilabel` reads.
    """
    several = cfg.get("method") == "multilabel"
    names = catalogue.named(lambda info: several or not info.multilabel)
    return catalogue.DATASETS[choice(cfg, "data.dataset", names)]


def add_and_assert_wandb_cfg(cfg: DictConfig) -> DictConfig:
    """Set the defaults of `wandb` and `tensorboard`."""
    fill(cfg, schema.Run, *LOGGERS)
    return cfg


def add_and_assert_lightning_cfg(cfg: DictConfig) -> DictConfig:
    """Set the defaults of the keys that concern the trainer as a whole."""
    fill(cfg, schema.Run, *TRAINER_KEYS)
    return cfg


def set_num_classes(cfg: DictConfig, info: catalogue.DatasetInfo) -> None:
    """Set `data.num_classes`: known by name, or counted below `data.train_path`.

    Raises:
        DataError: when that folder does not exist.
    """
    if info.num_classes is not None:
        cfg.data.num_classes = info.num_classes
        return
    folder = Path(str(required(cfg, "data.train_path")))
    if info.count_classes is not None:
        cfg.data.num_classes = info.counted(folder)
        return
    if cfg.data.format in ("h5", "resident") and folder.is_file():
        names = ", ".join(n for n in catalogue.formats_of("h5") if n in catalogue.class_counts())
        raise ConfigError(f"H5 files are for {names}, not for data.dataset={info.name}")
    if cfg.data.format == "webdataset":
        from solo.data.shards.index import read_shards

        cfg.data.num_classes = read_shards(folder, "data.train_path").num_classes
        return
    if not folder.is_dir():
        raise DataError(f"data.train_path: there is no folder '{folder}'; check the path")
    shown = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    cfg.data.num_classes = max(1, sum(entry.is_dir() for entry in shown))


def check_format(cfg: DictConfig, info: catalogue.DatasetInfo) -> None:
    """Refuse formats that do not go with the data set, or with another key of `data`."""
    data_format = cfg.data.format
    if data_format in ("dali", "webdataset") and data_format not in info.formats:
        raise ConfigError(
            f"data.format={data_format} works with {', '.join(catalogue.formats_of(data_format))}, "
            f"not with data.dataset={info.name}: write data.format=image_folder"
        )
    if data_format == "resident" and "resident" not in info.formats:
        raise ConfigError(f"data.format=resident does not go with data.dataset={info.name}")
    if cfg.data.format == "dali" and cfg.data.get("augment") == "device":
        raise ConfigError(
            "data.augment=device is for image_folder, h5 and webdataset: dali has its own device"
        )
    if cfg.data.format == "dali" and cfg.data.get("value_range") is not None:
        raise ConfigError(
            "data.value_range works with image_folder, h5, resident and webdataset, not dali"
        )
    if data_format != "resident" and cfg.data.get("resident_size") is not None:
        raise ConfigError(
            f"data.resident_size is the side of images in memory and has no effect with data.format"
            f"={data_format}: leave it out, or pretrain with data.format=resident"
        )


def check_channels(cfg: DictConfig) -> None:
    """Refuse `backbone.kwargs.in_chans` other than 3 where images of so many channels cannot be.

    Raises:
        ConfigError: the data set, the format, or an entry of `augmentations` is for three.
    """
    channels = channels_of(cfg)
    if not accepts(channels, int) or channels < 1:
        raise ConfigError(f"backbone.kwargs.in_chans={channels!r} must be an integer of at least 1")
    asked = f"backbone.kwargs.in_chans={channels}"
    if channels != 3 and not catalogue.info_of(cfg.data.dataset).any_images:
        raise ConfigError(f"{asked}: images of data.dataset={cfg.data.dataset} have three channels")
    if channels != 3 and cfg.data.format == "dali":
        raise ConfigError(f"{asked} works with image_folder, h5, resident, webdataset, not dali")
    entries = select(cfg, "augmentations")
    for number, entry in enumerate(entries if OmegaConf.is_list(entries) else ()):
        require_statistics(entry, channels, f"augmentations.{number}")
        checked_augmentation(entry, f"augmentations.{number}")
    others = {p.get("dataset") for p in (select(cfg, "probes") or {}).values()} - {"custom"}
    if channels != 3 and others:
        raise ConfigError(f"{asked}: probes on {', '.join(map(str, others))} have three channels")


def require_statistics(section: Any, channels: int, where: str) -> None:
    """Raise ConfigError unless `mean` and `std` have a number for each channel; 3 have defaults."""
    for key in ("mean", "std"):
        value = section.get(key)
        if value is None and channels == 3:
            continue
        if value is None or len(value) != channels:
            raise ConfigError(
                f"{where}.{key}={value}: give {channels} numbers, one for each channel of the "
                f"images (backbone.kwargs.in_chans)"
            )


def default_workers(processes: int = 1, most: int = 8) -> int:
    """Loader processes where nobody says how many: the cores of this machine, shared.

    Args:
        processes: that train here, each with its own loaders.
        most: for one process; more than that seldom have something to do.
    """
    return max(1, min(most, cores() // processes))


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def count_devices(cfg: DictConfig) -> int:
    """How many devices one machine contributes, from `devices` as list, int or string.

    Raises:
        ConfigError: when `devices` is none of these.
    """
    devices = OmegaConf.select(cfg, "devices", default="auto")
    if OmegaConf.is_list(devices) or isinstance(devices, (list, tuple)):
        if not devices:
            raise ConfigError("'devices' is an empty list: name a device, or write auto")
        return len(devices)
    if isinstance(devices, str) and devices not in ("auto", "-1"):
        parts = [part for part in devices.split(",") if part.strip()]
        if not all(part.strip().isdigit() for part in parts):
            raise ConfigError(f"'devices={devices}' must be a list, an integer or auto")
        return len(parts) if "," in devices else int(devices)
    if devices in ("auto", "-1", -1, None):
        return _all_devices(OmegaConf.select(cfg, "accelerator", default="auto"))
    if isinstance(devices, int) and not isinstance(devices, bool) and devices > 0:
        return devices
    raise ConfigError(f"'devices={devices!r}' must be a list, a positive integer or auto")


def processes(cfg: DictConfig) -> int:
    """How many processes train: devices of a machine x machines."""
    return count_devices(cfg) * int(cfg.get("num_nodes") or 1)


def _all_devices(accelerator: str) -> int:
    if accelerator == "cpu":
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def scale_lr(cfg: DictConfig, keys: Iterable[str]) -> None:
    """Scale learning rates by batch size x devices x nodes / 256 (Goyal et al. 2017), once.

    `optimizer.<key>` becomes the value in effect, `optimizer.<key>_as_written` keeps the user's;
    a configuration that already has both is left as it is.

    Raises:
        ConfigError: when both are there and contradict each other.
    """
    scale = required(cfg, "optimizer.batch_size") * count_devices(cfg) * cfg.num_nodes / 256
    for key in keys:
        now = required(cfg, f"optimizer.{key}")
        written = select(cfg, f"optimizer.{key}_as_written")
        if written is None:
            cfg.optimizer[f"{key}_as_written"] = now
            cfg.optimizer[key] = now * scale
        elif not isclose(now, written * scale, rel_tol=1e-6):
            raise ConfigError(
                f"optimizer.{key}={now} is not optimizer.{key}_as_written={written} x batch size x "
                f"devices x nodes / 256 = {written * scale}: remove optimizer.{key}_as_written and "
                f"write the unscaled value as optimizer.{key}"
            )


def _is_share(value: Any) -> bool:
    return accepts(value, float) and 0 <= value < 1


def set_optimizer_kwargs(cfg: DictConfig) -> None:
    """Check the keys of `optimizer.kwargs`, and set the defaults of this optimizer.

    Raises:
        ConfigError: for an unknown optimizer or an argument that it does not take.
    """
    name = choice(cfg, "optimizer.name", schema.OPTIMIZER_DEFAULTS)
    valid = schema.OPTIMIZER_KWARGS[name]
    kwargs = cfg.optimizer.kwargs
    for key in kwargs:
        if key not in valid:
            hint = did_you_mean(str(key), valid)
            raise ConfigError(f"unknown key 'optimizer.kwargs.{key}' for {name}. {hint}")
    check_section(kwargs, schema.OptimizerArguments, "optimizer.kwargs")
    betas = kwargs.get("betas")
    if betas is not None and not (len(betas) == 2 and all(_is_share(beta) for beta in betas)):
        raise ConfigError(f"optimizer.kwargs.betas={betas}: two numbers of at least 0 and below 1")
    for key, value in schema.OPTIMIZER_DEFAULTS[name].items():
        kwargs[key] = select(kwargs, key, value)
