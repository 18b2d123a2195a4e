# SPDX-License-Identifier: MIT
"""Offline evaluation: a linear classifier on a frozen encoder, or fine-tuning of both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from solo import extensions
from solo.args import schema
from solo.backbones import features_dim
from solo.errors import ConfigError
from solo.methods.optimization import DEFAULT_KEYS, REQUIRED_KEYS, OptimizationMixin, fill_defaults
from solo.monitoring.step_metrics import StepMetrics
from solo.utils.metrics import accuracy_at_k, weighted_mean
from solo.utils.param_groups import param_groups_layer_decay

_LINEAR_DEFAULTS = (*DEFAULT_KEYS, "optimizer.layer_decay", "finetune")


class LinearModel(OptimizationMixin, StepMetrics, pl.LightningModule):
    """Linear probe, or fine-tuning with `finetune: true`.

    Args:
        backbone: encoder, images to (N, F).
        cfg: reads `data.num_classes`, `optimizer`, `scheduler`, `finetune`, `max_epochs`.
        loss_func: training loss of (logits, targets); cross-entropy by default. Validation is
            always plain cross-entropy.
        mixup_func: (images, targets) to mixed images and soft targets, in training only; then
            `loss_func` gets the soft targets.

    Raises:
        ConfigError: for a missing key, or layer decay without what it needs.
    """

    def __init__(
        self,
        backbone: nn.Module,
        cfg: DictConfig,
        loss_func: Callable[[Tensor, Tensor], Tensor] | None = None,
        mixup_func: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    ):
        super().__init__()
        cfg = self.add_and_assert_specific_cfg(cfg)
        self.backbone = backbone
        self.features_dim: int = features_dim(backbone)
        self.classifier = nn.Linear(self.features_dim, cfg.data.num_classes)
        self.mixup_func = mixup_func
        self.loss_func = nn.CrossEntropyLoss() if loss_func is None else loss_func
        self._read_optimization(cfg)
        self.layer_decay: float = cfg.optimizer.layer_decay
        self.finetune: bool = cfg.finetune
        self.validation_step_outputs: list[dict[str, Any]] = []
        if not self.finetune:
            self.backbone.requires_grad_(False)

    @classmethod
    def add_and_assert_specific_cfg(cls, cfg: DictConfig) -> DictConfig:
        """Check the keys that are read here and fill in the defaults, in place."""
        return fill_defaults(cfg, schema.Linear, REQUIRED_KEYS, _LINEAR_DEFAULTS)

    def configure_callbacks(self) -> list[pl.Callback]:
        """While fine-tuning: what keeps a patched encoder patched, such as fixed masks."""
        if not self.finetune:
            return []
        found = (ext.finetune_callbacks(self.backbone) for ext in extensions.registered())
        return [callback for callbacks in found for callback in callbacks]

    @property
    def learnable_params(self) -> list[dict[str, Any]]:
        """The classifier; when fine-tuning, the encoder before it, by layers with layer decay."""
        classifier = {"name": "classifier", "params": self.classifier.parameters()}
        if self.layer_decay > 0:
            return [*self._layer_groups(), classifier]
        if self.finetune:
            return [*extensions.parameter_groups(self.backbone, name="backbone"), classifier]
        return [classifier]

    def _layer_groups(self) -> list[dict[str, Any]]:
        if not self.finetune:
            raise ConfigError("optimizer.layer_decay acts on the encoder only: set finetune: true")
        if not hasattr(self.backbone, "no_weight_decay"):
            raise ConfigError(
                f"optimizer.layer_decay needs an encoder that lists its parameters without weight "
                f"decay (`no_weight_decay()`, as ViT and Swin do); {type(self.backbone).__name__} "
                "does not: set optimizer.layer_decay to 0"
            )
        return param_groups_layer_decay(
            self.backbone,
            self.weight_decay,
            no_weight_decay_list=self.backbone.no_weight_decay(),
            layer_decay=self.layer_decay,
        )

    def configure_optimizers(self) -> Any:
        """Build the optimizer alone, or ([optimizer], [schedule]) where there is a schedule."""
        return self._build_optimizers(self.learnable_params)

    def forward(self, X: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) to `logits` (N, C) and `feats` (N, F)."""
        if not self.no_channel_last:
            X = X.to(memory_format=torch.channels_last)
        with torch.set_grad_enabled(self.finetune and torch.is_grad_enabled()):
            feats = self.backbone(X)
        return {"logits": self.classifier(feats), "feats": feats}

    def shared_step(self, batch: Sequence[Tensor], batch_idx: int) -> dict[str, Any]:
        """`batch_size` and `loss` of a batch (images, targets); `acc1`, `acc5` unless mixed."""
        X, targets = batch
        metrics: dict[str, Any] = {"batch_size": X.size(0)}
        if self.training and self.mixup_func is not None:
            X, targets = self.mixup_func(X, targets)
            return {**metrics, "loss": self.loss_func(self(X)["logits"], targets)}
        logits = self(X)["logits"]
        loss_func = self.loss_func if self.training else F.cross_entropy
        acc1, acc5 = accuracy_at_k(logits, targets, top_k=(1, 5))
        return {**metrics, "loss": loss_func(logits, targets), "acc1": acc1, "acc5": acc5}

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch; a frozen encoder stays in eval mode."""
        if not self.finetune:
            self.backbone.eval()
        out = self.shared_step(batch, batch_idx)
        self.images_in_step = out["batch_size"]
        log = {f"train_{key}": out[key] for key in ("loss", "acc1", "acc5") if key in out}
        terms = extensions.losses(self, batch[:1]) if self.finetune else {}
        self.log_dict({**log, **terms}, on_epoch=True, sync_dist=True)
        return sum(terms.values(), out["loss"])

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> dict[str, Any]:
        """Metrics of one batch: `batch_size`, `val_loss`, `val_acc1`, `val_acc5`."""
        out = self.shared_step(batch, batch_idx)
        metrics = {f"val_{key}": out[key] for key in ("loss", "acc1", "acc5")}
        metrics["batch_size"] = out["batch_size"]
        self.validation_step_outputs.append(metrics)
        return metrics

    def on_validation_epoch_start(self) -> None:
        """What the encoder computes is measured on the validation images alone."""
        extensions.collect(self.backbone)

    def on_validation_epoch_end(self) -> None:
        """Log the means over the epoch, and what the encoder computed in it."""
        outputs = self.validation_step_outputs
        keys = ("val_loss", "val_acc1", "val_acc5")
        log = {key: weighted_mean(outputs, key, "batch_size") for key in keys}
        figures = extensions.collect(self.backbone)
        log.update({f"encoder/{name}": value for name, value in figures.items()})
        self.log_dict(log, sync_dist=True)
        outputs.clear()
