# SPDX-License-Identifier: MIT
"""Linear evaluation and fine-tuning of the encoder in a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from solo.args import schema
from solo.args.check import require, select
from solo.args.common import processes
from solo.args.linear import parse_cfg
from solo.data.shown import Shown, channels_of
from solo.errors import CheckpointError, ConfigError, DataError
from solo.files.results import keep_results, read_results
from solo.files.run_args import read_args

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from solo.checkpoints.loading import LoadReport
    from solo.data.datasets.holdout import Holdout
    from solo.data.datasets.splits import Split
    from solo.methods.linear import LinearModel
    from solo.programs.training import Data


def linear(cfg: DictConfig) -> Trainer:
    """Run linear evaluation or fine-tuning, as `main_linear.py` does, on a composed configuration.

    Raises:
        SoloError: a mistake in the configuration, the data or the checkpoint.
    """
    OmegaConf.set_struct(cfg, False)
    parse_cfg(cfg)
    require(cfg, schema.Linear)
    report = load_backbone(cfg)
    print(report)

    import torch
    from lightning.pytorch import seed_everything

    from solo.data.datasets import splits
    from solo.monitoring.loggers import csv_of
    from solo.monitoring.quiet import quiet
    from solo.programs.closing import finish
    from solo.programs.resuming import find_resume
    from solo.programs.training import LogFigures, SaveParts, fit
    from solo.utils.compiled_encoder import compile_encoders
    from solo.utils.misc import make_contiguous

    quiet()
    seed_everything(cfg.seed, verbose=False)
    model = build_model(cfg, report.backbone)
    make_contiguous(model)
    if not cfg.performance.disable_channel_last:
        model = model.to(memory_format=torch.channels_last)
    if OmegaConf.select(cfg, "performance.compile", default=False):
        compile_encoders(model, frozen=not cfg.finetune)
    logdir = Path(cfg.checkpoint.dir) / "linear"
    resume = find_resume(cfg, logdir)
    split = None if resume.path is None else splits.read(resume.path.parent)
    holdout = held_out(cfg)
    data = build_data(cfg, split, holdout)
    callbacks = [LogFigures(report.figures), SaveParts([splits.of_data(data), holdout], logdir)]
    trainer = fit(cfg, model, data, logdir, callbacks, resume)
    _print_result(trainer, model, cfg)
    if trainer.is_global_zero:
        keep_results(csv_of(trainer.loggers).path.parent, {"encoder_figures": report.figures})
        _tell_the_evaluated_run(cfg, csv_of(trainer.loggers).path.parent)
    finish(cfg, trainer)
    return trainer


def _tell_the_evaluated_run(cfg: DictConfig, folder: Path) -> None:
    """Write the accuracy into `results.json` of the run whose encoder was evaluated."""
    from solo.programs.closing import tell_run

    found = read_results(folder).get("run", {})
    metrics = found.get("metrics", {})
    if "val_acc1" not in metrics:
        return
    weights = Path(str(cfg.pretrained_feature_extractor))
    entry = {
        "dataset": cfg.data.dataset,
        "encoder": cfg.eval_encoder,
        "finetune": cfg.finetune,
        "epochs": cfg.max_epochs,
        "seed": cfg.seed,
        "folder": str(folder),
        "checkpoint": weights.name if weights.is_file() else None,
        "acc1": metrics["val_acc1"],
        "acc5": metrics.get("val_acc5"),
    }
    run = weights.parent if weights.is_file() else weights
    tell_run(run, "linear", [entry], ("acc1", "acc5", "folder"))


def load_backbone(cfg: DictConfig) -> LoadReport:
    """The encoder of `cfg.backbone` with all its weights from `pretrained_feature_extractor`.

    That is a checkpoint, or the folder of a run, which stands for its last checkpoint.

    Raises:
        CheckpointError: no file is given, it cannot be read, or it does not fit.
    """
    path = select(cfg, "pretrained_feature_extractor")
    if path is None:
        raise CheckpointError(
            "pretrained_feature_extractor is not given: name the checkpoint to evaluate, as in "
            "pretrained_feature_extractor='\"trained_models/byol/0/name-0-ep=99.ckpt\"'"
        )
    from solo import extensions
    from solo.backbones import build_encoder
    from solo.checkpoints.loading import load_encoder
    from solo.checkpoints.runs import weights_file

    path = weights_file(path)
    report = load_encoder(build_encoder(_as_trained(cfg, path)), path, cfg.eval_encoder)
    for extension in extensions.active(cfg):
        extension.after_load(report.backbone, cfg)
    return report


def _as_trained(cfg: DictConfig, path: Path) -> DictConfig:
    """`cfg`, with the data set that the encoder was trained on: it decides a ResNet's stem."""
    from solo.checkpoints.loading import read_args

    trained = ((read_args(path) or {}).get("data") or {}).get("dataset")
    if trained in (None, cfg.data.dataset):
        return cfg
    cfg = cfg.copy()
    cfg.data.dataset = trained
    return cfg


def build_model(cfg: DictConfig, backbone: Any) -> LinearModel:
    """The classifier on `backbone`, with the loss and the mixing of images that `cfg` asks for."""
    from timm.data.mixup import Mixup
    from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

    from solo.methods.linear import LinearModel

    mixup = loss = None
    if cfg.mixup > 0 or cfg.cutmix > 0:
        if cfg.optimizer.batch_size % 2:
            raise ConfigError(
                f"mixup and cutmix mix a batch with its reverse: optimizer.batch_size="
                f"{cfg.optimizer.batch_size} must be even"
            )
        mixup = Mixup(
            mixup_alpha=cfg.mixup,
            cutmix_alpha=cfg.cutmix,
            prob=1.0,
            switch_prob=0.5,
            mode="batch",
            label_smoothing=cfg.label_smoothing,
            num_classes=cfg.data.num_classes,
        )
        loss = SoftTargetCrossEntropy()
    elif cfg.label_smoothing > 0:
        loss = LabelSmoothingCrossEntropy(smoothing=cfg.label_smoothing)
    return LinearModel(backbone, cfg, loss_func=loss, mixup_func=mixup)


def held_out(cfg: DictConfig) -> Holdout | None:
    """What validates where there is no `data.val_path`: what the encoder's run held out of the
    same images, or what it would have held out of others."""
    from solo.data.datasets import holdout

    if cfg.data.val_path is not None or not cfg.data.val_fraction:
        return None
    run = Path(cfg.pretrained_feature_extractor)
    run = run if run.is_dir() else run.parent
    trained = ((read_args(run) or {}).get("data") or {}).get("train_path")
    same = trained is not None and Path(trained).resolve() == Path(cfg.data.train_path).resolve()
    return (holdout.read(run) if same else None) or holdout.Holdout(cfg.data.val_fraction)


def build_data(cfg: DictConfig, split: Split | None = None, holdout: Holdout | None = None) -> Data:
    """Labelled training and validation images.

    Args:
        split: what an earlier run trained on.
        holdout: the training images that validate, where there are no others.
    """
    data = cfg.data
    look = data.augmentations
    images = Shown(look.crop_size, tuple(look.mean), tuple(look.std))
    part = {name: data[name] for name in ("fraction_of", "skip_unreadable")}
    part["crop_min_scale"] = look.crop_min_scale
    on_device = data.augment == "device"
    if cfg.auto_augment and on_device:
        raise ConfigError(
            "auto_augment changes images in the loader's workers: leave data.augment=device out"
        )
    if holdout is not None and data.format != "image_folder":
        raise ConfigError(
            f"data.val_fraction works with data.format=image_folder, not {data.format}: give "
            "data.val_path"
        )
    if data.format == "dali":
        if cfg.auto_augment:
            raise ConfigError("auto_augment does not work with data.format=dali")
        from solo.data.dali_dataloader import ClassificationDALIDataModule
        from solo.data.datasets.folders import compare_folders

        compare_folders(data.train_path, data.val_path)
        return ClassificationDALIDataModule(
            dataset=data.dataset,
            train_data_path=data.train_path,
            val_data_path=data.val_path,
            num_workers=data.num_workers,
            batch_size=cfg.optimizer.batch_size,
            data_fraction=data.fraction,
            dali_device=cfg.dali.device,
            exif=_reading(cfg)["exif"],
            split=split,
            images=images,
            **part,
        )
    from solo.data.classification_dataloader import prepare_data
    from solo.data.pretrain_dataloader import require_full_batch

    train, val = prepare_data(
        data.dataset,
        train_data_path=data.train_path,
        val_data_path=data.val_path,
        data_format=data.format,
        batch_size=cfg.optimizer.batch_size,
        num_workers=data.num_workers,
        data_fraction=data.fraction,
        auto_augment=cfg.auto_augment,
        images=images,
        as_bytes=on_device,
        split=split,
        holdout=holdout,
        **part,
        **_reading(cfg),
    )
    classes = getattr(train.dataset, "classes", None)
    if classes is not None and len(classes) < 2:
        raise DataError(
            f"data.train_path has one class ('{classes[0]}'): a classifier needs at least two."
        )
    require_full_batch(train.dataset, cfg.optimizer.batch_size, processes(cfg))
    if on_device:
        from solo.data.views.device_normalise import NormalisedOnDevice

        return NormalisedOnDevice(train, val, images.mean, images.std)
    return train, val


def _reading(cfg: DictConfig) -> dict[str, Any]:
    """`data.exif` and `data.value_range` as they are asked for, else as the encoder was trained."""
    from solo.programs.evaluation import trained_reading

    reading = trained_reading(select(cfg, "pretrained_feature_extractor"))
    asked = {name: select(cfg, f"data.{name}") or value for name, value in reading.items()}
    return {**asked, "channels": channels_of(cfg)}


def _print_result(trainer: Trainer, model: LinearModel, cfg: DictConfig) -> None:
    """Accuracy and measured cost of the last epoch, and what fine-tuning made of the encoder."""
    from solo.monitoring.loggers import csv_of, last_values

    metrics = trainer.callback_metrics
    if not metrics:  # of a finished run, from its file
        metrics = last_values(csv_of(trainer.loggers).path)
    if not trainer.is_global_zero or "val_acc1" not in metrics:
        return
    kind = "fine-tuned" if cfg.finetune else "linear"
    acc1, acc5 = (float(metrics[key]) for key in ("val_acc1", "val_acc5"))
    print(f"Result ({kind}, {cfg.eval_encoder} encoder, last epoch): acc@1={acc1}, acc@5={acc5}")
    for name, value in metrics.items():
        if name.startswith("encoder/") and name.count("/") == 1:
            print(f"  {name.removeprefix('encoder/')}: {float(value):.6g} (validation images)")
    if cfg.finetune:
        from solo import extensions

        for extension in extensions.registered():
            for name, value in extension.describe(model.backbone).items():
                print(f"  {name}: {value:.6g}")
