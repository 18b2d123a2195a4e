# SPDX-License-Identifier: MIT
"""Self-supervised pretraining: from a configuration to a trained checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from solo.args import schema
from solo.args.check import require
from solo.args.common import count_devices, processes
from solo.args.pretrain import parse_cfg
from solo.data.catalogue import info_of
from solo.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
    from torch.utils.data import DataLoader

    from solo.programs.training import Data


def pretrain(cfg: DictConfig) -> Trainer:
    """Run pretraining, as `main_pretrain.py` does, on a composed configuration.

    Raises:
        SoloError: a mistake in the configuration, the data or a checkpoint.
    """
    OmegaConf.set_struct(cfg, False)
    parse_cfg(cfg)
    require(cfg, schema.Pretrain)

    from lightning.pytorch import seed_everything

    from solo.data.datasets.images import ReadError
    from solo.programs.closing import finish
    from solo.programs.training import fit

    watching = _watching(cfg)
    seed_everything(cfg.seed, verbose=False)
    model = build_model(cfg)
    data = build_data(cfg)
    try:
        trainer = fit(
            cfg,
            model,
            data,
            Path(cfg.checkpoint.dir) / cfg.method,
            [*_umap(cfg), *_frozen(cfg)],
            watching=watching,
        )
    except ReadError as error:
        hint = "With data.skip_unreadable=True broken training files are counted and left out."
        raise ReadError(f"{error} {hint}") from error
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
            f"{cfg.data.num_large_crops} (those with the crop_size of the first entry)"
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


def build_data(cfg: DictConfig) -> Data:
    """Training views and, where there are labels, validation images."""
    from solo.data.datasets.folders import compare_folders

    val = validation_loader(cfg)
    if cfg.data.format in ("dali", "resident") and not cfg.data.no_labels:
        compare_folders(cfg.data.train_path, cfg.data.val_path)
    if cfg.data.format == "dali":
        return _dali(cfg, val)
    if cfg.data.format == "resident":
        return _resident(cfg, val)
    from solo.data.classification_dataloader import check_classes
    from solo.data.pretrain_dataloader import (
        build_transform_pipeline,
        prepare_dataloader,
        prepare_datasets,
        prepare_n_crop_transform,
        require_full_batch,
    )
    from solo.data.views.long_images import image_sizes, warn_of_long_images

    device_views = None
    if cfg.data.get("augment") == "device":
        from solo.data.views.device_views import DeviceData, DeviceViews

        compiled = OmegaConf.select(cfg, "performance.compile", default=False)
        device_views = DeviceViews(cfg.data.dataset, cfg.augmentations, compiled)
        transform = device_views.transform()
    else:
        transform = prepare_n_crop_transform(
            [build_transform_pipeline(cfg.data.dataset, entry) for entry in cfg.augmentations],
            [entry.num_crops for entry in cfg.augmentations],
        )
    if cfg.debug_augmentations:
        print("Transforms:\n", transform)
    dataset = prepare_datasets(
        cfg.data.dataset,
        transform,
        train_data_path=cfg.data.train_path,
        data_format=cfg.data.format,
        pixels=device_views is not None,
        **_which_images(cfg),
    )
    if cfg.data.get("skip_unreadable"):
        from solo.data.datasets.unreadable import without_unreadable

        where = f"'{cfg.data.train_path}'"
        dataset = without_unreadable(dataset, where, max(1, cfg.data.num_workers))
    require_full_batch(dataset, cfg.optimizer.batch_size, processes(cfg))
    if val is not None and not cfg.data.no_labels:
        check_classes(dataset, val.dataset)
    warn_of_long_images(image_sizes(dataset), cfg.augmentations)
    train = prepare_dataloader(dataset, cfg.optimizer.batch_size, cfg.data.num_workers)
    return (train, val) if device_views is None else DeviceData(train, device_views, val)


def _which_images(cfg: DictConfig) -> dict[str, Any]:
    return {
        "no_labels": cfg.data.no_labels,
        "data_fraction": cfg.data.fraction,
        "fraction_of": cfg.data.get("fraction_of", "images"),
        "exif": cfg.data.get("exif", "ignore"),
        "value_range": cfg.data.get("value_range"),
    }


def _resident(cfg: DictConfig, val: DataLoader | None) -> LightningDataModule:
    from solo.data.pretrain_dataloader import require_full_batch
    from solo.data.resident.loader import ResidentData, prepare_resident
    from solo.data.views.batched import build_views
    from solo.data.views.long_images import warn_of_long_images

    compiled = OmegaConf.select(cfg, "performance.compile", default=False)
    views = build_views(cfg.data.dataset, cfg.augmentations, compiled)
    if cfg.debug_augmentations:
        print("Transforms:\n", views)
    dataset = prepare_resident(
        cfg.data.dataset,
        views,
        train_data_path=cfg.data.train_path,
        size=cfg.data.get("resident_size"),
        skip_unreadable=cfg.data.get("skip_unreadable", False),
        threads=cfg.data.num_workers,
        processes=count_devices(cfg),
        **_which_images(cfg),
    )
    require_full_batch(dataset, cfg.optimizer.batch_size, processes(cfg))
    warn_of_long_images([tuple(dataset.images.shape[2:])], cfg.augmentations)
    return ResidentData(dataset, cfg.optimizer.batch_size, val)


def validation_loader(cfg: DictConfig) -> DataLoader | None:
    """Labelled validation images, None where there are none."""
    data = cfg.data
    info = info_of(data.dataset)
    if (info.any_images and data.no_labels) or (info.path == "required" and data.val_path is None):
        return None
    from solo.data.classification_dataloader import prepare_val_data
    from solo.data.datasets.folders import stored_format
    from solo.data.shown import shown

    return prepare_val_data(
        data.dataset,
        val_data_path=data.val_path,
        data_format=stored_format(data.format, data.val_path),
        batch_size=cfg.optimizer.batch_size,
        num_workers=data.num_workers,
        exif=data.get("exif", "ignore"),
        value_range=data.get("value_range"),
        images=shown(data.dataset, cfg, size=data.get("image_size")),
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
