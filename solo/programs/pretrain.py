# SPDX-License-Identifier: MIT
"""Self-supervised pretraining: from a configuration to a trained checkpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from solo.args import schema
from solo.args.check import require
from solo.args.common import count_devices, processes
from solo.args.own_images import settle
from solo.args.pretrain import parse_cfg
from solo.data.catalogue import info_of
from solo.errors import ConfigError, did_you_mean
from solo.monitoring.console import say

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
    from torch.utils.data import DataLoader

    from solo.data.datasets.holdout import Holdout
    from solo.data.views.device_views import DeviceViews
    from solo.programs.training import Data


def pretrain(cfg: DictConfig) -> Trainer:
    """Run pretraining, as `main_pretrain.py` does, on a composed configuration.

    Raises:
        SoloError: a mistake in the configuration, the data or a checkpoint.
    """
    OmegaConf.set_struct(cfg, False)
    chosen = settle(cfg)
    parse_cfg(cfg)
    require(cfg, schema.Pretrain)
    if chosen and int(os.environ.get("LOCAL_RANK", 0)) == 0:
        say(*chosen)

    from lightning.pytorch import seed_everything

    from solo.data.datasets import holdout as holdouts
    from solo.monitoring.quiet import quiet
    from solo.programs.closing import finish
    from solo.programs.resuming import find_resume
    from solo.programs.training import SaveParts, fit

    watching = _watching(cfg)
    quiet()
    seed_everything(cfg.seed, verbose=False)
    model = build_model(cfg)
    logdir = Path(cfg.checkpoint.dir) / cfg.method
    holdout, resume = None, None
    if cfg.data.val_fraction and cfg.data.val_path is None:
        resume = find_resume(cfg, logdir)
        kept = None if resume.path is None else holdouts.read(resume.path.parent)
        holdout = kept or holdouts.Holdout(cfg.data.val_fraction)
    data = build_data(cfg, holdout)
    if cfg.get("dry_run"):
        from solo.programs.dry_run import dry_run

        return dry_run(cfg, model, data)
    callbacks = [*_umap(cfg), *_frozen(cfg), SaveParts([holdout], logdir)]
    trainer = fit(cfg, model, data, logdir, callbacks, resume, watching=watching)
    finish(cfg, trainer)
    return trainer


def _watching(cfg: DictConfig) -> list[Callback]:
    """What measures the encoder at the end of an epoch, and ends a run that does not get on."""
    from solo.monitoring.milestones import Milestones
    from solo.quality.monitor import QualityMonitor
    from solo.quality.probes import Probes, check_probes

    check_probes(cfg)
    callbacks: list[Callback] = []
    if cfg.quality.enabled:
        callbacks.append(QualityMonitor(cfg.quality.images, cfg.quality.every))
    if cfg.get("probes"):
        callbacks.append(Probes(OmegaConf.to_container(cfg.probes, resolve=True)))
    if cfg.get("milestones"):
        wanted = OmegaConf.to_container(cfg.milestones, resolve=True)
        callbacks.append(Milestones(wanted, cfg.max_epochs))
    return callbacks


def build_model(cfg: DictConfig) -> LightningModule:
    """The method of `cfg`, contiguous and in channels_last unless that is switched off.

    Raises:
        ConfigError: the method is unknown, or is not made for this number of large crops.
    """
    import torch

    from solo.methods import METHODS
    from solo.utils.compiled_encoder import compile_encoders
    from solo.utils.misc import make_contiguous

    names = [name for name in METHODS if name not in ("base", "linear")]
    if cfg.method not in names:
        raise ConfigError(f"'method={cfg.method}' is unknown. {did_you_mean(cfg.method, names)}")
    wanted = METHODS[cfg.method].LARGE_CROPS
    if wanted not in (None, cfg.data.num_large_crops):
        raise ConfigError(
            f"{cfg.method} needs {wanted} large crops, but 'augmentations' makes "
            f"{cfg.data.num_large_crops} (those of the largest crop_size)"
        )
    model = METHODS[cfg.method](cfg)
    if cfg.get("init_from"):
        from solo.checkpoints.init_from import init_method

        print(init_method(model, cfg.init_from, cfg.get("init_allow_missing") or ()))
    make_contiguous(model)
    if not OmegaConf.select(cfg, "performance.disable_channel_last", default=False):
        model = model.to(memory_format=torch.channels_last)
    if OmegaConf.select(cfg, "performance.compile", default=False):
        compile_encoders(model)
    return model


def build_data(cfg: DictConfig, holdout: Holdout | None = None) -> Data:
    """Training views and, where there are labels, validation images.

    Args:
        holdout: the training images that validate, where there are no others.
    """
    from solo.data.classification_dataloader import check_classes
    from solo.data.datasets.folders import compare_folders
    from solo.data.pretrain_dataloader import prepare_dataloader, require_full_batch
    from solo.data.resident.loader import ResidentData
    from solo.data.views.device_views import DeviceData
    from solo.data.views.long_images import image_sizes, warn_of_long_images

    if holdout is not None and cfg.data.format not in ("image_folder", "resident"):
        raise ConfigError(
            "data.val_fraction works with data.format=image_folder and resident, not "
            f"{cfg.data.format}: give data.val_path, or data.val_fraction=0"
        )
    val, resident = validation_loader(cfg, holdout), cfg.data.format == "resident"
    if cfg.data.format in ("dali", "resident") and not cfg.data.no_labels:
        compare_folders(cfg.data.train_path, cfg.data.val_path)
    if cfg.data.format == "dali":
        return _dali(cfg, val)
    on_device, transform = _views(cfg)
    if cfg.debug_augmentations:
        print("Transforms:\n", transform)
    dataset = _training_images(cfg, transform, on_device is not None, holdout)
    batch_size = cfg.optimizer.batch_size
    require_full_batch(dataset, batch_size, processes(cfg))
    neighbours = len(dataset) * cfg.data.num_large_crops
    if OmegaConf.select(cfg, "knn_eval.enabled") and cfg.knn_eval.k > neighbours:
        raise ConfigError(
            f"knn_eval.k={cfg.knn_eval.k}: an epoch has only {neighbours} views to be neighbours"
        )
    if not resident and val is not None and not cfg.data.no_labels:
        check_classes(dataset, val.dataset)
    sizes = [tuple(dataset.images.shape[2:])] if resident else image_sizes(dataset)
    warn_of_long_images(sizes, cfg.augmentations)
    if resident:
        return ResidentData(dataset, batch_size, val)
    train = prepare_dataloader(dataset, batch_size, cfg.data.num_workers)
    return (train, val) if on_device is None else DeviceData(train, on_device, val)


def _views(cfg: DictConfig) -> tuple[DeviceViews | None, Any]:
    """What makes views of loaded images on the device, if asked for; what makes the rest."""
    from solo.data.pretrain_dataloader import build_transform_pipeline, prepare_n_crop_transform
    from solo.data.views.batched import build_views
    from solo.data.views.device_views import DeviceViews

    name, entries = cfg.data.dataset, cfg.augmentations
    compiled = OmegaConf.select(cfg, "performance.compile", default=False)
    if cfg.data.format == "resident":
        return None, build_views(name, entries, compiled)
    if cfg.data.get("augment") == "device":
        views = DeviceViews(name, entries, compiled)
        return views, views.transform()
    pipelines = [build_transform_pipeline(name, entry) for entry in entries]
    return None, prepare_n_crop_transform(pipelines, [entry.num_crops for entry in entries])


def _training_images(cfg: DictConfig, transform: Any, pixels: bool, holdout: Holdout | None) -> Any:
    from solo.data.datasets.unreadable import without_unreadable
    from solo.data.pretrain_dataloader import prepare_datasets
    from solo.data.resident.loader import prepare_resident
    from solo.data.shown import channels_of

    data = cfg.data
    which = {
        "train_data_path": data.train_path,
        "no_labels": data.no_labels,
        "data_fraction": data.fraction,
        "fraction_of": data.get("fraction_of", "images"),
        "exif": data.get("exif", "ignore"),
        "value_range": data.get("value_range"),
        "channels": channels_of(cfg),
        "holdout": holdout,
    }
    if data.format == "resident":
        return prepare_resident(
            data.dataset,
            transform,
            size=data.get("resident_size"),
            skip_unreadable=data.get("skip_unreadable", False),
            threads=data.num_workers,
            processes=count_devices(cfg),
            **which,
        )
    dataset = prepare_datasets(
        data.dataset, transform, data_format=data.format, pixels=pixels, **which
    )
    if data.get("skip_unreadable"):
        return without_unreadable(dataset, f"'{data.train_path}'", max(1, data.num_workers))
    return dataset


def validation_loader(cfg: DictConfig, holdout: Holdout | None = None) -> DataLoader | None:
    """Labelled validation images, None where there are none.

    Args:
        holdout: the training images that validate, where there are no others.
    """
    data = cfg.data
    info = info_of(data.dataset)
    path = data.train_path if holdout is not None else data.val_path
    if (info.any_images and data.no_labels) or (info.path == "required" and path is None):
        return None
    from solo.data.classification_dataloader import prepare_val_data
    from solo.data.datasets.folders import stored_format
    from solo.data.shown import channels_of, shown

    return prepare_val_data(
        info,
        shown(info, cfg, size=data.get("image_size")),
        val_data_path=path,
        data_format=stored_format(data.format, path),
        holdout=holdout,
        batch_size=cfg.optimizer.batch_size,
        num_workers=data.num_workers,
        exif=data.get("exif", "ignore"),
        value_range=data.get("value_range"),
        skip_unreadable=data.get("skip_unreadable", False),
        channels=channels_of(cfg),
    )


def _dali(cfg: DictConfig, val: DataLoader | None) -> LightningDataModule:
    from solo.data.dali_dataloader import PretrainDALIDataModule, build_transform_pipeline_dali
    from solo.data.pretrain_dataloader import FullTransformPipeline, NCropAugmentation

    transforms = FullTransformPipeline(
        [
            NCropAugmentation(
                build_transform_pipeline_dali(cfg.data.dataset, entry, cfg.dali.device),
                entry.num_crops,
            )
            for entry in cfg.augmentations
        ]
    )
    module = PretrainDALIDataModule(
        dataset=cfg.data.dataset,
        train_data_path=cfg.data.train_path,
        transforms=transforms,
        num_large_crops=cfg.data.num_large_crops,
        num_small_crops=cfg.data.num_small_crops,
        num_workers=cfg.data.num_workers,
        batch_size=cfg.optimizer.batch_size,
        no_labels=cfg.data.no_labels,
        data_fraction=cfg.data.fraction,
        dali_device=cfg.dali.device,
        encode_indexes_into_labels=cfg.dali.encode_indexes_into_labels,
        exif=cfg.data.get("exif", "ignore"),
        augmentations=cfg.augmentations,
        fraction_of=cfg.data.get("fraction_of", "images"),
        skip_unreadable=cfg.data.get("skip_unreadable", False),
    )
    module.val_dataloader = lambda: [] if val is None else val
    return module


def _frozen(cfg: DictConfig) -> list:
    freeze = cfg.get("freeze")
    if not freeze or not freeze.modules or freeze.epochs < 1:
        return []
    from solo.programs.freeze import FrozenModules

    return [FrozenModules(freeze.modules, freeze.epochs)]


def _umap(cfg: DictConfig) -> list:
    if not cfg.auto_umap.enabled:
        return []
    from solo.utils.auto_umap import AutoUMAP

    logdir = Path(cfg.auto_umap.dir) / cfg.method
    return [AutoUMAP(cfg.name, logdir=logdir, frequency=cfg.auto_umap.frequency)]
