# SPDX-License-Identifier: MIT
"""What kNN and UMAP share: a pretrained method from its folder, and datasets to evaluate it on."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.utils.data import DataLoader

from solo import extensions
from solo.checkpoints.files import read_args
from solo.checkpoints.runs import open_run
from solo.data.catalogue import info_of
from solo.data.datasets import holdout
from solo.data.datasets.holdout import Holdout
from solo.data.shown import reading_of, shown
from solo.errors import CheckpointError, ConfigError, did_you_mean
from solo.methods import METHODS
from solo.monitoring.console import bar

_ENCODER_PREFIXES = ("backbone.", "momentum_backbone.", "encoder.", "momentum_encoder.")


def device_of(name: str) -> torch.device:
    """The device called `name`; `auto` is the GPU where there is one.

    Raises:
        ConfigError: it does not exist here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device {name} cannot be used: {reason}") from error
    return device


def load_method(
    folder: str | Path, encoder: str = "online", settings: Mapping[str, Any] | None = None
) -> nn.Module:
    """The pretrained method in `folder` (args.json and a checkpoint), in eval mode on the CPU.

    Args:
        folder: of the run, as `main_pretrain.py` wrote it.
        encoder: which encoder `Features` will ask; the other one is loaded if it is there.
        settings: sections of extensions, with what they are to do with the encoder.

    Raises:
        CheckpointError: something is missing, damaged, or does not fit together.
        ConfigError: the encoder cannot do what `settings` ask.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"--pretrained_checkpoint_dir: there is no folder '{folder}'")
    try:
        run = open_run(folder)
    except CheckpointError as error:
        hint = "give the folder of one run, such as trained_models/byol/0"
        raise CheckpointError(f"--pretrained_checkpoint_dir: {error} ({hint})") from error
    model = _build(run.plain)
    report = run.load_into(model.backbone)
    model.backbone = report.backbone
    if encoder == "momentum":
        if not hasattr(model, "momentum_backbone"):
            raise CheckpointError(f"{run.args['method']} has no momentum encoder: {run.path}")
        report = run.load_into(model.momentum_backbone, "momentum")
        model.momentum_backbone = report.backbone
    wanted = OmegaConf.create(dict(settings or {}))
    for extension in extensions.active(wanted):
        extension.after_load(report.backbone, wanted)
    print(report)
    state = run.checkpoint["state_dict"]
    heads = {k: v for k, v in state.items() if not k.startswith(_ENCODER_PREFIXES)}
    own = model.state_dict()
    fitting = {k: v for k, v in heads.items() if k in own and own[k].shape == v.shape}
    model.load_state_dict(fitting, strict=False)
    model.loaded_heads = {key.split(".")[0] for key in fitting}
    return model.eval()


def _build(cfg: DictConfig) -> nn.Module:
    method = cfg.get("method")
    if method not in METHODS or method in ("base", "linear"):
        hint = did_you_mean(str(method), METHODS)
        raise CheckpointError(f"args.json: '{method}' is not a pretraining method. {hint}")
    return METHODS[method](cfg)


class Features(nn.Module):
    """Images to a dictionary with `feats` and, where the method has a projector, `z`.

    Args:
        model: a pretrained method.
        encoder: `online` or `momentum`.
    """

    def __init__(self, model: nn.Module, encoder: str = "online"):
        super().__init__()
        self.model = model
        self.encoder = encoder

    def forward(self, X: Tensor) -> dict[str, Tensor]:
        """`feats` (N, F) and maybe `z` (N, D) of images (N, 3, H, W)."""
        if self.encoder == "momentum":
            return self.model.momentum_forward(X)
        return self.model(X)


def trained_reading(path: str | Path | None) -> dict[str, Any]:
    """How the run of a checkpoint has read its images: its `data.exif` and `data.value_range`."""
    return reading_of(None if path is None else read_args(path))


@contextmanager
def sizes_explained() -> Iterator[None]:
    """Name the way out where an encoder takes no images of this size."""
    try:
        yield
    except AssertionError as error:
        if isinstance(error, ConfigError) or "doesn't match model" not in str(error):
            raise
        raise ConfigError(
            f"{error} Set data.image_size (--image_size in main_knn.py and main_umap.py) to the "
            "size that the encoder was trained on; in pretraining, make backbone.kwargs.img_size "
            "and the crops agree."
        ) from error


@torch.no_grad()
def extract_features(loader: DataLoader, model: nn.Module) -> tuple[Tensor, Tensor | None, Tensor]:
    """Features of a whole dataset, on the CPU.

    Args:
        loader: batches (images, targets).
        model: returns a dictionary with `feats` and maybe `z`; its device is used.

    Returns:
        (features (N, F), projections (N, D) or None, targets (N,)).
    """
    model.eval()
    device = next(model.parameters()).device
    feats, projections, labels = [], [], []
    for images, targets in bar(loader, "features"):
        with sizes_explained():
            out = model(images.to(device, non_blocking=True))
        feats.append(out["feats"].float().cpu())
        if out.get("z") is not None:
            projections.append(out["z"].float().cpu())
        labels.append(targets)
    z = torch.cat(projections) if projections else None
    return torch.cat(feats), z, torch.cat(labels)


def held_out(args: Namespace) -> Holdout | None:
    """What the run held out of the training images, where no validation images are given."""
    if args.val_data_path is not None or not info_of(args.dataset).any_images:
        return None
    return holdout.read(args.pretrained_checkpoint_dir)


def evaluation_loaders(args: Namespace) -> tuple[DataLoader, DataLoader | None]:
    """Training and validation images without augmentation, in order, none left out.

    Args:
        args: of `solo.args.knn` or `solo.args.umap`.
    """
    from solo.data.classification_dataloader import (
        check_classes,
        prepare_datasets,
        prepare_transforms,
        prepare_val_dataloader,
    )
    from solo.data.datasets.images import readers
    from solo.data.datasets.unreadable import without_unreadable

    trained = read_args(args.pretrained_checkpoint_dir)
    asked = {name: getattr(args, name, None) for name in ("mean", "std")}
    images = shown(info_of(args.dataset), trained, size=getattr(args, "image_size", None), **asked)
    _, transform = prepare_transforms(args.dataset, images=images)
    reading = trained_reading(args.pretrained_checkpoint_dir)
    for name, key in (("exif", "data_exif"), ("value_range", "value_range")):
        reading[name] = getattr(args, key, None) or reading[name]
    skip, threads = getattr(args, "skip_unreadable", False), max(1, args.num_workers)
    sizes: dict[str, Any] = {"batch_size": args.batch_size, "num_workers": args.num_workers}
    if args.no_labels:
        from solo.data.pretrain_dataloader import CustomDatasetWithoutLabels

        paths = [args.train_data_path, args.val_data_path]
        loader, _ = readers(**reading)
        sets = [
            None if p is None else CustomDatasetWithoutLabels(p, transform, loader) for p in paths
        ]
        if skip:
            sets = [s and without_unreadable(s, f"'{s.root}'", threads) for s in sets]
    else:
        sets = prepare_datasets(
            args.dataset,
            transform,
            transform,
            train_data_path=args.train_data_path,
            val_data_path=args.val_data_path,
            data_format="image_folder" if args.data_format == "dali" else args.data_format,
            data_fraction=args.data_fraction,
            skip_unreadable=skip,
            threads=threads,
            holdout=held_out(args),
            **reading,
        )
        if sets[1] is not None:
            check_classes(*sets)
    return tuple(None if s is None else prepare_val_dataloader(s, **sizes) for s in sets)
