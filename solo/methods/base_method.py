# SPDX-License-Identifier: MIT
"""What every self-supervised method shares: encoder, online classifier, steps.

A method declares `KWARGS` (its method_kwargs) and `HEADS` (its projectors and predictors) and
writes its loss; forward passes, parameter groups, views, metrics and checkpoints follow from them
here, momentum copies in `base_momentum`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import lightning.pytorch as pl
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from solo import extensions
from solo.args import schema
from solo.backbones import BACKBONES, build_encoder, features_dim
from solo.errors import ConfigError
from solo.methods.heads import Head, apply_heads, has_batch_norm
from solo.methods.kwargs import check_kwargs
from solo.methods.optimization import DEFAULT_KEYS, REQUIRED_KEYS, OptimizationMixin, fill_defaults
from solo.methods.step import average, by_key, class_metrics, val_metrics
from solo.monitoring.step_metrics import StepMetrics
from solo.utils.metrics import weighted_mean
from solo.utils.misc import omegaconf_select
from solo.utils.param_groups import split_by_layer
from solo.utils.ranks import get_world_size
from solo.utils.views import encoding

BASE_MOMENTUM = "solo.methods.base_momentum"  # a step there has no loss of its own either
_METHOD_DEFAULTS = ("backbone", *DEFAULT_KEYS, "knn_eval", "method_kwargs")
_METHOD_REQUIRED = (
    "method",
    "backbone.name",
    "data.dataset",
    "data.num_large_crops",
    "data.num_small_crops",
    "optimizer.classifier_lr",
    *REQUIRED_KEYS,
)


class BaseMethod(OptimizationMixin, StepMetrics, pl.LightningModule):
    """Encoder with an online linear classifier that does not reach it with its gradient.

    Attributes:
        KWARGS: method_kwargs; a type stands for a required value of that type, anything else
            is the default. None leaves method_kwargs unchecked.
        IGNORED_KWARGS: method_kwargs that published recipes carry without effect.
        HEADS: the heads by attribute name, in the order in which they are applied and in which
            the optimizer gets them. A mapping of extra keys for the parameter group stands for a
            head that the method applies itself.
        HEADS_ON_SMALL_CROPS: whether small crops go through the heads, too.
        SMALL_CROPS: whether the loss uses small crops; None: whether they go through the heads.
        LARGE_CROPS: the number of large crops that the method is made for; None for any.

    Raises:
        ConfigError: for a key that is missing, unknown or of the wrong type.
    """

    KWARGS: Mapping[str, Any] | None = None
    IGNORED_KWARGS: frozenset[str] | set[str] = frozenset()
    HEADS: Mapping[str, Head | Mapping[str, Any]] = {}
    HEADS_ON_SMALL_CROPS = False
    SMALL_CROPS: bool | None = None
    LARGE_CROPS: int | None = 2

    _BACKBONES = BACKBONES
    _ACCEPTED_SCHEDULERS = ("warmup_cosine", "warmup_step", "step", "none")

    def __init__(self, cfg: DictConfig):
        super().__init__()
        cfg = self.add_and_assert_specific_cfg(cfg)
        self.cfg = cfg
        self.backbone_args: DictConfig = cfg.backbone.kwargs
        self.backbone_name: str = cfg.backbone.name
        self.base_model = BACKBONES.get(self.backbone_name)
        self.backbone: nn.Module = build_encoder(cfg)
        self.features_dim: int = features_dim(self.backbone)
        self.num_classes: int = cfg.data.num_classes
        self.classifier = nn.Linear(self.features_dim, self.num_classes)
        self._read_optimization(cfg)
        self.classifier_lr: float = cfg.optimizer.classifier_lr
        if self.accumulate_grad_batches:
            self.lr *= self.accumulate_grad_batches
            self.classifier_lr *= self.accumulate_grad_batches
            self.min_lr *= self.accumulate_grad_batches
            self.warmup_start_lr *= self.accumulate_grad_batches
        self.num_large_crops: int = cfg.data.num_large_crops
        self.num_small_crops: int = cfg.data.num_small_crops
        self.num_crops: int = self.num_large_crops + self.num_small_crops
        self.multicrop: bool = self.num_small_crops != 0
        if self.multicrop:
            self._require_small_crops(cfg.method)
        self.knn_eval: bool = cfg.knn_eval.enabled
        self.knn_k: int = cfg.knn_eval.k
        if self.knn_eval:
            from solo.utils.knn import WeightedKNNClassifier

            self.knn = WeightedKNNClassifier(k=self.knn_k, distance_fx=cfg.knn_eval.distance_func)
        self.validation_step_outputs: list[dict[str, Any]] = []
        self._all_labelled = False  # of the batch under way; what is not known is looked at
        self._labelled: bool = not omegaconf_select(cfg, "data.no_labels", False)

    def _require_small_crops(self, method: str) -> None:
        """Raise ConfigError where small crops would be encoded and then forgotten."""
        uses = self.HEADS_ON_SMALL_CROPS if self.SMALL_CROPS is None else self.SMALL_CROPS
        if uses or self.training_step.__module__ in (__name__, BASE_MOMENTUM):
            return
        raise ConfigError(
            f"{method} has no use for small crops: 'augmentations' makes {self.num_small_crops}, "
            "smaller than the largest. Leave them out, or take dino, ibot, dinov2, lejepa, swav, "
            "deepclusterv2, simclr, supcon or byol. (A method of your own that uses them "
            "says SMALL_CROPS = True.)"
        )

    # ---- configuration ----

    @classmethod
    def add_and_assert_specific_cfg(cls, cfg: DictConfig) -> DictConfig:
        """Check the keys this method reads and fill in its defaults, in place; may be repeated."""
        fill_defaults(cfg, schema.Pretrain, _METHOD_REQUIRED, _METHOD_DEFAULTS)
        if cls.KWARGS is not None:
            check_kwargs(cfg, cls.KWARGS, cls.IGNORED_KWARGS)
        return cfg

    @property
    def learnable_params(self) -> list[dict[str, Any]]:
        """Parameter groups: encoder, online classifier, then the heads."""
        return [
            *self._backbone_groups(),
            *map(self._classifier_group, self._classifiers),
            *(
                {"name": name, "params": getattr(self, name).parameters(), **head.group}
                for name, head in self.declared_heads.items()
                if head.trained
            ),
        ]

    @property
    def declared_heads(self) -> dict[str, Head]:
        """The heads that `HEADS` declares, each as a `Head`."""
        return {
            name: head if isinstance(head, Head) else Head(group=head)
            for name, head in self.HEADS.items()
        }

    @property
    def _classifiers(self) -> list[str]:
        """Attributes that hold an online classifier, in the order of their parameter groups."""
        return ["classifier"]

    def _backbone_groups(self) -> list[Mapping[str, Any]]:
        groups = extensions.parameter_groups(self.backbone, name="backbone")
        layer_decay = omegaconf_select(self.cfg, "optimizer.layer_decay", 0.0)
        patch_embed_lr = omegaconf_select(self.cfg, "optimizer.patch_embed_lr")
        patch_embed_lr = 1.0 if patch_embed_lr is None else patch_embed_lr
        if layer_decay in (0, 1) and patch_embed_lr == 1:
            return groups
        return split_by_layer(self.backbone, groups, layer_decay, patch_embed_lr)

    def _classifier_group(self, name: str) -> dict[str, Any]:
        params = getattr(self, name).parameters()
        return {"name": name, "params": params, "lr": self.classifier_lr, "weight_decay": 0}

    def configure_optimizers(self) -> Any:
        """Build the optimizer alone, or ([optimizer], [schedule]) where there is a schedule."""
        return self._build_optimizers(self.learnable_params)

    def configure_callbacks(self) -> list[pl.Callback]:
        """The callbacks of the extensions that the configuration turns on."""
        return [cb for ext in extensions.active(self.cfg) for cb in ext.callbacks(self, self.cfg)]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the weight decay of this step, where it has a schedule."""
        if self.final_weight_decay is not None:
            trainer = self.trainer
            progress = trainer.global_step / trainer.estimated_stepping_batches
            for optimizer in trainer.optimizers:
                self._set_weight_decay(optimizer, progress)

    def optimizer_zero_grad(self, epoch, batch_idx, optimizer, *_) -> None:
        """Drop the gradients instead of filling them with zeros."""
        optimizer.zero_grad(set_to_none=True)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make files of older solo-learn releases fit, in place.

        Before 1.0.3 the encoder was called `encoder`; SimSiam files hold a bound method as a
        schedule's `get_lr`, which would call itself for ever.
        """
        super().on_load_checkpoint(checkpoint)
        for schedule in checkpoint.get("lr_schedulers", []):
            schedule.pop("get_lr", None)
        state = checkpoint["state_dict"]
        for prefix in ("encoder.", "momentum_encoder."):
            for key in [key for key in state if key.startswith(prefix)]:
                state[key.replace("encoder", "backbone", 1)] = state.pop(key)
        for extension in extensions.registered():
            extension.read(state)
            extension.before_resume(self, state)

    # ---- forward passes ----

    def _channels(self, X: Tensor) -> Tensor:
        return X if self.no_channel_last else X.to(memory_format=torch.channels_last)

    def forward(self, X: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) to `feats` (N, F), `logits` (N, C) and the outputs of the heads."""
        return self._outputs(self.backbone(self._channels(X)))

    def _outputs(self, feats: Tensor) -> dict[str, Tensor]:
        return {
            "logits": self.classifier(feats.detach()),
            "feats": feats,
            **apply_heads(feats, self.declared_heads, self.get_submodule),
        }

    def multicrop_forward(self, X: Tensor) -> dict[str, Tensor]:
        """Small crops to `feats` (N, F), with the heads' outputs where the loss needs them."""
        return self._small_outputs(self.backbone(self._channels(X)))

    def _small_outputs(self, feats: Tensor) -> dict[str, Tensor]:
        heads = self.declared_heads if self.HEADS_ON_SMALL_CROPS else {}
        return {"feats": feats, **apply_heads(feats, heads, self.get_submodule)}

    def _as_one_batch(self, encoder: nn.Module, *methods: str) -> bool:
        """Whether crops of one size may go through `encoder` together in a multi-crop step.

        Only where that is the same: it has no batch statistics, no extension tells views apart,
        and the passes of this class that it stands for are not overridden.

        Args:
            encoder: online or momentum.
            methods: names of those passes.
        """
        own = [name for name in methods if not inherited(type(self), BaseMethod, name)]
        return (
            self.multicrop
            and not own
            and not has_batch_norm(encoder)
            and not extensions.tells_views_apart(encoder)
        )

    def _encode_large_crops(self, X: Sequence[Tensor], targets: Tensor) -> list[dict[str, Tensor]]:
        """What `base_training_step` returns for every large crop."""
        passes = ("forward", "_base_shared_step", "base_training_step")
        feats: Sequence[Tensor] = ()
        if self._as_one_batch(self.backbone, *passes):
            with encoding(0, "online"):
                feats = self.backbone(self._channels(torch.cat(list(X)))).chunk(len(X))
        views = []
        for index, x in enumerate(X):
            with encoding(index, "online"):
                if feats:
                    out = self._outputs(feats[index])
                    views.append({**out, **class_metrics(out["logits"], targets)})
                else:
                    views.append(self.base_training_step(x, targets))
        return views

    def _encode_small_crops(self, X: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """What `multicrop_forward` returns for every small crop."""
        groups = [[x] for x in X]
        if self._as_one_batch(self.backbone, "multicrop_forward"):
            groups = [list(same) for _, same in groupby(X, key=lambda x: x.shape)]
        views: list[dict[str, Tensor]] = []
        for crops in groups:
            with encoding(self.num_large_crops + len(views), "online"):
                if len(crops) == 1:
                    views.append(self.multicrop_forward(crops[0]))
                    continue
                feats = self.backbone(self._channels(torch.cat(crops)))
                views += self._small_outputs_of(feats, len(crops))
        return views

    def _small_outputs_of(self, feats: Tensor, crops: int) -> list[dict[str, Tensor]]:
        """The outputs of several crops' features; heads with batch norm see one crop at a time."""
        heads = [getattr(self, name) for name, h in self.declared_heads.items() if h.output]
        if any(has_batch_norm(head) for head in heads):
            return [self._small_outputs(part) for part in feats.chunk(crops)]
        joint = {key: value.chunk(crops) for key, value in self._small_outputs(feats).items()}
        return [{key: parts[i] for key, parts in joint.items()} for i in range(crops)]

    # ---- training ----

    def _base_shared_step(self, X: Tensor, targets: Tensor) -> dict[str, Tensor]:
        out = self(X)
        return {**out, **class_metrics(out["logits"], targets)}

    def base_training_step(self, X: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Forward pass and online classification of one large crop; made to be overridden."""
        return self._base_shared_step(X, targets)

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Any:
        """Encode every view and train the online classifier.

        Args:
            batch: `[indexes, views, targets]`; a view is (N, 3, H, W), large crops first;
                target -1 means no label.
            batch_idx: number of the batch.

        Returns:
            the lists, over the views, of what the forward passes return, and the means over the
            large crops of `loss`, `acc1` and `acc5`; `loss` with what the extensions add. A method
            returns the scalar loss instead.
        """
        _, X, targets = batch
        self.images_in_step = len(targets)
        X = [X] if isinstance(X, Tensor) else X
        if len(X) != self.num_crops:
            raise ConfigError(
                f"the batch has {len(X)} views, but data.num_large_crops + data.num_small_crops "
                f"is {self.num_crops}: make the augmentations' num_crops agree"
            )
        large, small = X[: self.num_large_crops], X[self.num_large_crops :]
        outs = by_key([*self._encode_large_crops(large, targets), *self._encode_small_crops(small)])
        average(outs, ("loss", "acc1", "acc5"))
        if self._has_labels(targets):
            self._log_train(
                train_class_loss=outs["loss"], train_acc1=outs["acc1"], train_acc5=outs["acc5"]
            )
        if self.knn_eval:
            self._feed_knn(outs["feats"][: self.num_large_crops], targets)
        outs["loss"] = self._with_extensions(outs["loss"], X, outs["feats"])
        return outs

    def _with_extensions(
        self, loss: Tensor, X: Sequence[Tensor], feats: Sequence[Tensor] = ()
    ) -> Tensor:
        """The loss with what the extensions add to it, which is logged."""
        terms = extensions.losses(self, X, feats)
        if terms:
            self._log_train(**terms)
        return loss + sum(terms.values())

    def _log_train(self, **metrics: Tensor) -> None:
        """Log training metrics, per step and per epoch, averaged over the ranks."""
        self.log_dict(metrics, on_epoch=True, sync_dist=True)

    def _has_labels(self, targets: Tensor) -> bool:
        """Whether classifier metrics mean anything here.

        Several processes decide by `data.no_labels` alone, because they must all log the same.
        A single one looks at the labels, while they are on the host (`on_before_batch_transfer`).
        """
        if get_world_size() == 1 and targets.device.type == "cpu":
            return bool((targets != -1).any())
        return self._labelled

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Look at the labels before they leave for the device: later it would cost a wait."""
        if self._training_batch(batch):
            targets = batch[2]
            looks = isinstance(targets, Tensor) and targets.device.type == "cpu"
            self._all_labelled = looks and bool((targets != -1).all())
            if looks and get_world_size() == 1:
                self._labelled = bool((targets != -1).any())
        return batch

    def _training_batch(self, batch: Any) -> bool:
        return self.training and isinstance(batch, (list, tuple)) and len(batch) == 3

    def _feed_knn(self, feats: list[Tensor], targets: Tensor) -> None:
        features, targets = torch.cat(feats).detach(), targets.repeat(len(feats))
        if not self._all_labelled:  # their number is waited for
            labelled = targets != -1
            features, targets = features[labelled], targets[labelled]
        self.knn(train_features=features, train_targets=targets)

    # ---- validation ----

    def base_validation_step(self, X: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Forward pass and online classification; made to be overridden."""
        return self._base_shared_step(X, targets)

    def validation_step(
        self,
        batch: Sequence[Tensor],
        batch_idx: int,
        dataloader_idx: int | None = None,
        update_validation_step_outputs: bool = True,
    ) -> dict[str, Any]:
        """Metrics of one batch `(images, targets)`: `batch_size`, `val_loss`, `val_acc1/5`."""
        X, targets = batch
        out = self.base_validation_step(X, targets)
        if self.knn_eval and not self.trainer.sanity_checking:
            self.knn(test_features=out["feats"].detach(), test_targets=targets)
        metrics = {"batch_size": targets.size(0), **val_metrics(out)}
        if update_validation_step_outputs:
            self.validation_step_outputs.append(metrics)
        return metrics

    def on_validation_epoch_end(self) -> None:
        """Log the means over the epoch, and the kNN accuracies."""
        log = self._epoch_means("val_loss", "val_acc1", "val_acc5")
        if self.knn_eval and not self.trainer.sanity_checking:
            log["val_knn_acc1"], log["val_knn_acc5"] = self.knn.compute()
        self.log_dict(log, sync_dist=True)
        self.validation_step_outputs.clear()

    def _epoch_means(self, *keys: str) -> dict[str, Any]:
        outputs = self.validation_step_outputs
        return {key: weighted_mean(outputs, key, "batch_size") for key in keys}


def inherited(method: type, base: type, name: str) -> bool:
    """Whether the class `method` has its attribute `name` from `base`, or from above it."""
    return getattr(method, name) is getattr(base, name)
