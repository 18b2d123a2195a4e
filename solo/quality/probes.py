# SPDX-License-Identifier: MIT
"""Evaluation on other data while an encoder is trained: `probes.NAME` of a configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from solo import extensions
from solo.args import schema
from solo.args.check import fill
from solo.backbones import input_channels
from solo.data import catalogue
from solo.data.shown import reading_of, shown
from solo.errors import ConfigError, did_you_mean
from solo.monitoring.console import bar
from solo.utils.knn import WeightedKNNClassifier
from solo.utils.metrics import accuracy_at_k
from solo.utils.ranks import gather_rows
from solo.values import check_section

LINEAR_STEPS = 100  # of L-BFGS
LINEAR_DECAY = 1e-4  # times the squared norm of the weights, on standardised features


def check_probes(cfg: DictConfig) -> None:
    """Check the section `probes` and fill in its defaults, in place.

    Raises:
        ConfigError: a key, a value or a dataset that does not exist.
    """
    for name, probe in (cfg.get("probes") or {}).items():
        where = f"probes.{name}"
        if not OmegaConf.is_dict(probe):
            raise ConfigError(
                f"{where} must be a mapping such as {{dataset: cifar10, train_path: ..., "
                "val_path: ...}"
            )
        check_section(probe, schema.Probe, where)
        if probe.get("dataset") is None:
            raise ConfigError(f"{where}.dataset is missing: a name, `custom` for class folders")
        known = catalogue.single_label()
        if probe.dataset not in known:
            raise ConfigError(
                f"{where}.dataset='{probe.dataset}': no dataset with one label per image is called "
                f"so. {did_you_mean(probe.dataset, known)}"
            )
        fill(probe, schema.Probe)


class Probes(Callback):
    """Logs `probe/<name>_acc1` and `probe/<name>_acc5`, in per cent, of every probe that is due.

    Features are computed once per probe and epoch, in evaluation mode and without gradient, each
    rank a part of the images; neither the encoder nor any random number of the run is touched.

    Args:
        probes: the checked section `probes`.
    """

    def __init__(self, probes: Mapping[str, Any]):
        super().__init__()
        self.probes = dict(probes)
        self._loaders: dict[str, tuple[DataLoader, DataLoader]] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the data, so that a wrong path or size is reported before the first step.

        Raises:
            DataError: a dataset is missing, or its two splits have other classes.
            ConfigError: the method has no momentum encoder that a probe asks for, or the encoder
                takes no images of a probe's size.
        """
        from solo.data.classification_dataloader import (
            check_classes,
            prepare_datasets,
            prepare_transforms,
        )

        for name, probe in self.probes.items():
            if probe["encoder"] == "momentum" and not hasattr(pl_module, "momentum_backbone"):
                raise ConfigError(
                    f"probes.{name}.encoder=momentum: this method has no such encoder"
                )
            trained = getattr(pl_module, "cfg", {})
            info = catalogue.info_of(probe["dataset"])
            images = shown(info, trained, size=probe.get("image_size"))
            _, transform = prepare_transforms(probe["dataset"], images=images)
            sets = prepare_datasets(
                probe["dataset"],
                transform,
                transform,
                train_data_path=probe["train_path"],
                val_data_path=probe["val_path"],
                data_format=probe["format"],
                **reading_of(trained),
            )
            check_classes(*sets)
            mine = [Subset(s, range(trainer.global_rank, len(s), trainer.world_size)) for s in sets]
            self._loaders[name] = tuple(  # type: ignore[assignment]
                DataLoader(s, probe["batch_size"], num_workers=probe["num_workers"]) for s in mine
            )
            _require_size(name, _encoder(probe, pl_module), images.size)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate the probes that are due."""
        epoch = trainer.current_epoch + 1
        for name, probe in self.probes.items():
            if epoch % probe["every"] == 0 or epoch == trainer.max_epochs:
                backbone = _encoder(probe, pl_module)
                with isolate_rng(), _evaluating(backbone):
                    train, val = (
                        _features(backbone, loader, pl_module.device)
                        for loader in self._loaders[name]
                    )
                    acc1, acc5 = _accuracies(probe, train, val)
                pl_module.log_dict({f"probe/{name}_acc1": acc1, f"probe/{name}_acc5": acc5})


def _encoder(probe: Mapping[str, Any], module: LightningModule) -> nn.Module:
    return module.momentum_backbone if probe["encoder"] == "momentum" else module.backbone


def _require_size(name: str, backbone: nn.Module, side: int) -> None:
    device = next(backbone.parameters()).device
    try:
        with isolate_rng(), torch.no_grad(), _evaluating(backbone):
            backbone(torch.zeros(1, input_channels(backbone), side, side, device=device))
    except AssertionError as error:  # of a timm encoder of one size
        raise ConfigError(
            f"probes.{name}: {error} Set probes.{name}.image_size to the size that the encoder "
            "takes, or backbone.kwargs.dynamic_img_size=True."
        ) from error


@contextmanager
def _evaluating(backbone: nn.Module) -> Iterator[None]:
    """Inside, the encoder is in evaluation mode; afterwards each part is in the mode it had."""
    modes = {module: module.training for module in backbone.modules()}
    backbone.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        extensions.collect(backbone)  # what these passes have added to somebody's figures


@torch.no_grad()
def _features(
    backbone: nn.Module, loader: DataLoader, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Features (N, F) and labels (N,) of all ranks' parts."""
    feats, labels = [], []
    for images, targets in bar(loader, "features of the probe"):
        feats.append(backbone(images.to(device, non_blocking=True)).float())
        labels.append(targets.to(device))
    return gather_rows(torch.cat(feats)), gather_rows(torch.cat(labels))


def _accuracies(
    probe: Mapping[str, Any], train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor]
) -> tuple[float, float]:
    if probe["kind"] == "linear":
        return linear_accuracies(*train, *val)
    knn = WeightedKNNClassifier(k=probe["k"], distance_fx="cosine")
    knn.sync_on_compute = False  # every rank has everything already
    knn(train_features=train[0], train_targets=train[1])
    knn(test_features=val[0], test_targets=val[1])
    return knn.compute()


def linear_accuracies(
    features: Tensor, targets: Tensor, val_features: Tensor, val_targets: Tensor
) -> tuple[float, float]:
    """Top-1 and top-5 accuracy, in per cent, of multinomial logistic regression on features.

    Features are standardised by the training ones; L-BFGS from zero, so that nothing is random.

    Args:
        features: (N, F), with targets (N,).
        val_features: (M, F), with val_targets (M,).
    """
    mean, std = features.mean(dim=0), features.std(dim=0).clamp(min=1e-6)
    x, y = ((part - mean) / std for part in (features, val_features))
    classes = int(torch.cat([targets, val_targets]).max()) + 1
    weight = torch.zeros(classes, x.shape[1] + 1, device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=LINEAR_STEPS, line_search_fn="strong_wolfe")

    def logits(rows: Tensor) -> Tensor:
        return F.linear(rows, weight[:, :-1], weight[:, -1])

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(logits(x), targets)
        value = value + LINEAR_DECAY * weight[:, :-1].square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    acc1, acc5 = accuracy_at_k(logits(y).detach(), val_targets, top_k=(1, 5))
    return float(acc1), float(acc5)
