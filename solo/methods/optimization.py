# SPDX-License-Identifier: MIT
"""Optimizers, learning-rate schedules and training defaults, shared by every LightningModule."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.trainer.states import TrainerStatus
from omegaconf import DictConfig, OmegaConf
from torch.optim import Optimizer

from solo.args.check import fill
from solo.errors import ConfigError, did_you_mean
from solo.utils.lars import LARS
from solo.utils.lr_scheduler import (
    Exponential,
    MultiStep,
    Plateau,
    WarmupCosine,
    WarmupMultiStep,
)
from solo.utils.misc import omegaconf_select
from solo.utils.param_groups import remove_bias_and_norm_from_weight_decay

OPTIMIZERS = {
    "sgd": torch.optim.SGD,
    "lars": LARS,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}
SCHEDULERS = ["reduce", "warmup_cosine", "warmup_step", "step", "exponential", "none"]

# what every module reads: set where a configuration leaves it out, and required ones
DEFAULT_KEYS = (
    "optimizer.exclude_bias_n_norm_wd",
    "optimizer.kwargs",
    "accumulate_grad_batches",
    "scheduler",
    "performance.disable_channel_last",
)
REQUIRED_KEYS = (
    "data.num_classes",
    "max_epochs",
    "optimizer.name",
    "optimizer.batch_size",
    "optimizer.lr",
    "optimizer.weight_decay",
    "scheduler.name",
)


def fill_defaults(
    cfg: DictConfig, program: type, required: Iterable[str], keys: Iterable[str]
) -> DictConfig:
    """Check that `required` keys are there and set the defaults of `keys`, in place, repeatedly.

    Args:
        cfg: the whole configuration.
        program: its schema.
        required: dotted names.
        keys: dotted names, see `solo.args.check.fill`.

    Raises:
        ConfigError: for a required key that is absent, null or `???`.
    """
    for key in required:
        if omegaconf_select(cfg, key) is None:
            raise ConfigError(f"{key} is missing: set it in the YAML or as {key}=VALUE")
    fill(cfg, program, *keys)
    return cfg


def _plain(value: Any) -> Any:
    """Python lists and dicts, so that no OmegaConf object ends in a checkpoint."""
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _epochs(steps: Any) -> list[int] | None:
    """`scheduler.lr_decay_steps`, which torch takes from any iterable, a string's letters too."""
    listed = [] if steps is None else steps
    if isinstance(listed, list) and all(isinstance(step, (int, float)) for step in listed):
        return steps
    raise ConfigError(f"scheduler.lr_decay_steps must be a list of epochs, got {steps!r}")


def _keep_options(optimizer: Optimizer, rates: bool) -> None:
    """Let the options of the configuration (weight decay, momentum, ...) survive a resume.

    Args:
        optimizer: whose state may be loaded later on, with the options of the run that saved it.
        rates: the learning rate is one of them; else what a schedule has made of it is kept.
    """
    kept: list[dict[str, Any]] = []
    left = {"params"} if rates else {"params", "lr", "initial_lr"}

    def before(optimizer: Optimizer, state: dict[str, Any]) -> None:
        kept[:] = [
            {key: value for key, value in group.items() if key not in left}
            for group in optimizer.param_groups
        ]

    def after(optimizer: Optimizer) -> None:
        for group, options in zip(optimizer.param_groups, kept, strict=True):
            group.update(options)

    optimizer.register_load_state_dict_pre_hook(before)
    optimizer.register_load_state_dict_post_hook(after)


class OptimizationMixin:
    """Reads `optimizer`, `scheduler`, ... of the configuration and builds what they ask for."""

    _OPTIMIZERS = OPTIMIZERS
    _SCHEDULERS = SCHEDULERS
    # the names of _SCHEDULERS that this module's configure_optimizers accepts
    _ACCEPTED_SCHEDULERS: Sequence[str] = SCHEDULERS

    def _read_optimization(self, cfg: DictConfig) -> None:
        self.max_epochs: int = cfg.max_epochs
        self.accumulate_grad_batches: int | None = cfg.accumulate_grad_batches
        optimizer, scheduler = cfg.optimizer, cfg.scheduler
        self.optimizer: str = optimizer.name
        self.batch_size: int = optimizer.batch_size
        self.lr: float = optimizer.lr
        self.weight_decay: float = optimizer.weight_decay
        self.extra_optimizer_args: dict[str, Any] = _plain(optimizer.kwargs)
        self.exclude_bias_n_norm_wd: bool = optimizer.exclude_bias_n_norm_wd
        self.final_weight_decay: float | None = omegaconf_select(
            cfg, "optimizer.final_weight_decay"
        )
        self.scheduler: str = scheduler.name
        self.lr_decay_steps: list[int] | None = _epochs(_plain(scheduler.lr_decay_steps))
        self.min_lr: float = scheduler.min_lr
        self.warmup_start_lr: float = scheduler.warmup_start_lr
        self.warmup_epochs: float = scheduler.warmup_epochs
        self.scheduler_interval: str = scheduler.interval
        if self.scheduler_interval not in ("step", "epoch"):
            raise ConfigError(
                f"scheduler.interval must be 'step' or 'epoch', got '{self.scheduler_interval}'"
            )
        self.no_channel_last: bool = cfg.performance.disable_channel_last

    def _build_optimizers(self, groups: Sequence[Mapping[str, Any]]) -> Any:
        """What `configure_optimizers` returns for these parameter groups.

        Besides torch's keys a group may have `static_lr: True` (its rate is not scheduled) and
        `lr_scale` (its rate is multiplied by it).

        Raises:
            ConfigError: for an optimizer or a scheduler of another name.
        """
        if self.exclude_bias_n_norm_wd:
            groups = remove_bias_and_norm_from_weight_decay(groups)
        groups = [dict(group) for group in groups]
        self._decayed = [i for i, group in enumerate(groups) if "weight_decay" not in group]
        static = [i for i, group in enumerate(groups) if group.pop("static_lr", False)]
        for group in groups:
            if "lr_scale" in group:
                group["lr"] = group.get("lr", self.lr) * group["lr_scale"]
        if self.optimizer not in self._OPTIMIZERS:
            raise ConfigError(
                f"optimizer.name='{self.optimizer}' does not exist. "
                f"{did_you_mean(self.optimizer, self._OPTIMIZERS)}"
            )
        given = self.extra_optimizer_args
        if given.get("capturable") and not torch.cuda.is_available():
            raise ConfigError("optimizer.kwargs.capturable=True is for GPUs: leave it out here")
        try:
            optimizer = self._OPTIMIZERS[self.optimizer](
                groups, lr=self.lr, weight_decay=self.weight_decay, **given
            )
        except (ValueError, TypeError, RuntimeError) as error:
            raise ConfigError(
                f"optimizer.name={self.optimizer} refuses its settings (optimizer.kwargs={given}): "
                f"{error}"
            ) from error
        _keep_options(optimizer, rates=self.scheduler not in ("reduce", "exponential"))
        scheduler = self._build_scheduler(optimizer, static)
        return optimizer if scheduler is None else ([optimizer], [scheduler])

    def _set_weight_decay(self, optimizer: Optimizer, progress: float) -> None:
        """Give the groups without a decay of their own that of this point of the run (DINO).

        A cosine from `optimizer.weight_decay` to `optimizer.final_weight_decay`.

        Args:
            optimizer: made by `_build_optimizers`.
            progress: part of the run's optimizer steps that is done, 0 to 1.
        """
        if self.final_weight_decay is None:
            return
        left = (1 + math.cos(math.pi * progress)) / 2
        first, last = self.weight_decay, self.final_weight_decay
        for index in self._decayed:
            optimizer.param_groups[index]["weight_decay"] = last + (first - last) * left

    def _build_scheduler(self, optimizer: Optimizer, static: list[int]) -> Any:
        name = str(self.scheduler).lower()
        if name not in self._ACCEPTED_SCHEDULERS:
            raise ConfigError(
                f"scheduler.name='{self.scheduler}' does not exist here. "
                f"{did_you_mean(name, self._ACCEPTED_SCHEDULERS)}"
            )
        if name == "warmup_cosine":
            return self._warmup_cosine(optimizer, static)
        if name == "warmup_step":
            return self._warmup_step(optimizer, static)
        if name == "step":
            return MultiStep(optimizer, self.lr_decay_steps or [], static_indexes=static)
        if name == "reduce":
            return self._plateau(optimizer)
        if name == "exponential":  # solo-learn takes the decay rate from the weight decay
            return Exponential(optimizer, self.weight_decay)
        return None

    def _plateau(self, optimizer: Optimizer) -> Any:
        """Bare, as solo-learn returns it, but with what to watch when Lightning will run it."""
        plateau = Plateau(optimizer)
        state = getattr(self._trainer, "state", None)  # type: ignore[attr-defined]
        if state is not None and state.status == TrainerStatus.RUNNING:
            return {"scheduler": plateau, "monitor": "val_loss"}
        return plateau

    def _warmup_step(self, optimizer: Optimizer, static: list[int]) -> dict[str, Any]:
        steps = 1.0
        if self.scheduler_interval == "step":
            total = self.trainer.estimated_stepping_batches  # type: ignore[attr-defined]
            steps = total / self.max_epochs
        schedule = WarmupMultiStep(
            optimizer,
            warmup_epochs=self.warmup_epochs * steps,
            milestones=[epoch * steps for epoch in self.lr_decay_steps or []],
            warmup_start_lr=self.warmup_start_lr,
            static_indexes=static,
        )
        return {"scheduler": schedule, "interval": self.scheduler_interval, "frequency": 1}

    def _warmup_cosine(self, optimizer: Optimizer, static: list[int]) -> dict[str, Any]:
        warmup: float = self.warmup_epochs
        total: float = self.max_epochs
        if self.scheduler_interval == "step":
            total = self.trainer.estimated_stepping_batches  # type: ignore[attr-defined]
            warmup = self.warmup_epochs * (total / self.max_epochs)
        schedule = WarmupCosine(
            optimizer,
            warmup_epochs=warmup,
            max_epochs=total,
            warmup_start_lr=self.warmup_start_lr if self.warmup_epochs > 0 else self.lr,
            eta_min=self.min_lr,
            static_indexes=static,
        )
        return {"scheduler": schedule, "interval": self.scheduler_interval, "frequency": 1}
