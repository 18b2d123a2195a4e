# SPDX-License-Identifier: MIT
"""What methods with a momentum encoder share: the copy, its passes, its update, its state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from solo.args import schema
from solo.args.check import fill
from solo.backbones import build_encoder
from solo.methods.base_method import BaseMethod, inherited
from solo.methods.heads import apply_heads
from solo.methods.step import average, by_key, class_metrics, val_metrics
from solo.utils.misc import omegaconf_select
from solo.utils.momentum import MomentumUpdater, initialize_momentum_params
from solo.utils.views import encoding


def without_stochastic_depth(cfg: DictConfig) -> DictConfig:
    """The configuration of a momentum encoder: targets are those of all blocks.

    Stochastic depth is the student's alone in DINO, iBOT and DINOv2. The momentum encoder runs in
    training mode, for the sake of batch norm, and would leave out blocks at random as well.
    """
    if not omegaconf_select(cfg, "backbone.kwargs.drop_path_rate", 0.0):
        return cfg
    return OmegaConf.merge(cfg, {"backbone": {"kwargs": {"drop_path_rate": 0.0}}})


class BaseMomentumMethod(BaseMethod):
    """A method with a momentum copy of the encoder, and of each head that has one.

    A head `x` of `HEADS` with a `momentum_x` beside it is a momentum pair.
    """

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        self.momentum_backbone: nn.Module = build_encoder(without_stochastic_depth(cfg))
        initialize_momentum_params(self.backbone, self.momentum_backbone)
        self.momentum_classifier: nn.Linear | None = None
        if cfg.momentum.classifier:
            self.momentum_classifier = nn.Linear(self.features_dim, self.num_classes)
        schedule = omegaconf_select(cfg, "momentum.schedule") or "cosine"
        taus = cfg.momentum.base_tau, cfg.momentum.final_tau
        self.momentum_updater = MomentumUpdater(*taus, schedule)
        self.last_step = 0
        self._resumed: dict[str, Any] | None = None

    @classmethod
    def add_and_assert_specific_cfg(cls, cfg: DictConfig) -> DictConfig:
        """Check the method's configuration and fill in the defaults of `momentum`."""
        cfg = super().add_and_assert_specific_cfg(cfg)
        fill(cfg, schema.Pretrain, "momentum")
        return cfg

    @property
    def _classifiers(self) -> list[str]:
        """The momentum classifier, where there is one, comes before the heads, as in solo-learn."""
        own = [] if self.momentum_classifier is None else ["momentum_classifier"]
        return [*super()._classifiers, *own]

    @property
    def momentum_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """(online, momentum) networks: the encoders, then the heads."""
        paired = [name for name in ("backbone", *self.HEADS) if hasattr(self, f"momentum_{name}")]
        return [(getattr(self, name), getattr(self, f"momentum_{name}")) for name in paired]

    # ---- steps ----

    @torch.no_grad()
    def momentum_forward(self, X: Tensor) -> dict[str, Tensor]:
        """Images to the momentum encoder's `feats` (N, F) and its heads' outputs."""
        return self._momentum_outputs(self.momentum_backbone(self._channels(X)))

    def _momentum_outputs(self, feats: Tensor) -> dict[str, Tensor]:
        heads = {
            f"momentum_{name}": head.momentum()
            for name, head in self.declared_heads.items()
            if hasattr(self, f"momentum_{name}")
        }
        return {"feats": feats, **apply_heads(feats, heads, self.get_submodule)}

    def _shared_step_momentum(self, X: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return self._with_momentum_classifier(self.momentum_forward(X), targets)

    def _encode_momentum(self, X: Sequence[Tensor], targets: Tensor) -> list[dict[str, Tensor]]:
        """What `_shared_step_momentum` returns for every large crop."""
        passes = ("momentum_forward", "_shared_step_momentum")
        own = [name for name in passes if not inherited(type(self), BaseMomentumMethod, name)]
        feats: Sequence[Tensor] = ()
        if not own and self._as_one_batch(self.momentum_backbone):
            with encoding(0, "momentum"), torch.no_grad():
                feats = self.momentum_backbone(self._channels(torch.cat(list(X)))).chunk(len(X))
        views = []
        for index, x in enumerate(X):
            with encoding(index, "momentum"):
                if feats:
                    with torch.no_grad():
                        out = self._momentum_outputs(feats[index])
                    views.append(self._with_momentum_classifier(out, targets))
                else:
                    views.append(self._shared_step_momentum(x, targets))
        return views

    def _with_momentum_classifier(
        self, out: dict[str, Tensor], targets: Tensor
    ) -> dict[str, Tensor]:
        if self.momentum_classifier is None:
            return out
        logits = self.momentum_classifier(out["feats"])
        return {**out, "logits": logits, **class_metrics(logits, targets)}

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Any:
        """As `BaseMethod`'s; adds `momentum_<key>` lists over the large crops."""
        outs = super().training_step(batch, batch_idx)
        _, X, targets = batch
        X = [X] if isinstance(X, Tensor) else X
        views = self._encode_momentum(X[: self.num_large_crops], targets)
        momentum = {f"momentum_{key}": values for key, values in by_key(views).items()}
        if self.momentum_classifier is not None:
            average(momentum, ("momentum_loss", "momentum_acc1", "momentum_acc5"))
            outs["loss"] = outs["loss"] + momentum["momentum_loss"]
            if self._has_labels(targets):
                self._log_train(
                    train_momentum_class_loss=momentum["momentum_loss"],
                    train_momentum_acc1=momentum["momentum_acc1"],
                    train_momentum_acc5=momentum["momentum_acc5"],
                )
        return {**outs, **momentum}

    def validation_step(
        self,
        batch: Sequence[Tensor],
        batch_idx: int,
        dataloader_idx: int | None = None,
        update_validation_step_outputs: bool = True,
    ) -> dict[str, Any]:
        """As `BaseMethod`'s, with `momentum_val_*` where there is a momentum classifier."""
        metrics = super().validation_step(
            batch, batch_idx, dataloader_idx, update_validation_step_outputs=False
        )
        if self.momentum_classifier is not None:
            X, targets = batch
            out = self._shared_step_momentum(X, targets)
            metrics.update({f"momentum_{key}": v for key, v in val_metrics(out).items()})
        if update_validation_step_outputs:
            self.validation_step_outputs.append(metrics)
        return metrics

    def on_validation_epoch_end(self) -> None:
        """As `BaseMethod`'s, with the momentum classifier's means."""
        if self.momentum_classifier is not None:
            keys = ("momentum_val_loss", "momentum_val_acc1", "momentum_val_acc5")
            self.log_dict(self._epoch_means(*keys), sync_dist=True)
        super().on_validation_epoch_end()

    # ---- the momentum update ----

    def on_train_start(self) -> None:
        """Take up the momentum schedule where the checkpoint, if any, left it."""
        step = self.trainer.global_step if self._trainer is not None else 0
        resumed, self._resumed = self._resumed, None
        if resumed is None:
            if step:  # a file without our record: tau follows from the step
                self._update_tau(step)
            self.last_step = step
            return
        self.momentum_updater.cur_tau = resumed["cur_tau"]
        self.last_step = resumed["last_step"]
        if self.last_step:  # as this run's configuration has it, which may be longer
            self._update_tau(self.last_step)
        if step > self.last_step:  # saved between an optimizer step and its momentum update
            self._update_momentum(step)

    def on_train_batch_end(self, outputs: Any, batch: Sequence[Any], batch_idx: int) -> None:
        """One momentum update per optimizer step (not per accumulated batch)."""
        step = self.trainer.global_step
        if step > self.last_step:
            self.log("tau", self.momentum_updater.cur_tau)
            self._update_momentum(step)
        self.last_step = step

    def _update_momentum(self, step: int) -> None:
        for online, momentum in self.momentum_pairs:
            self.momentum_updater.update(online, momentum)
        self._update_tau(step)
        self.last_step = step

    def _update_tau(self, step: int) -> None:
        max_steps = self.trainer.estimated_stepping_batches
        self.momentum_updater.update_tau(cur_step=step, max_steps=max_steps)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep tau and the step of the last update, so that a resumed run goes on exactly."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["momentum_state"] = {
            "cur_tau": self.momentum_updater.cur_tau,
            "last_step": self.last_step,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember tau and the step of the last update until training starts."""
        super().on_load_checkpoint(checkpoint)
        self._resumed = checkpoint.get("momentum_state")
