# SPDX-License-Identifier: MIT
"""Callbacks that guard a run: no training on NaN, and the same random numbers after a resume."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from solo.compat import foreach_norm
from solo.errors import CheckpointError, NonFiniteError
from solo.seeding import mix


class NonFiniteGuard(Callback):
    """Stops a run whose loss or weights are no longer finite.

    The losses are summed on the device and looked at every `log_every_n_steps` steps, so there is
    no host synchronisation per step; the weights are looked at before a checkpoint is taken.

    Args:
        checkpointer: the callback whose last checkpoint the message names.
        keeper: the `StepKeeper` whose folder it names.
    """

    def __init__(self, checkpointer: Any = None, keeper: Any = None):
        super().__init__()
        self.checkpointer = checkpointer
        self.keeper = keeper
        self._losses: list[tuple[int, Tensor]] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Remember the loss; look at all remembered ones when it is time."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):
            self._losses.append((trainer.global_step, loss.detach()))
        if len(self._losses) >= max(1, trainer.log_every_n_steps):
            self._check_losses(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the remaining losses, then the weights, before anything is saved."""
        self.check(trainer, pl_module)

    def check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise NonFiniteError if a loss since the last look, or a weight, is not finite."""
        self._check_losses(trainer)
        tensors = [p.detach() for p in pl_module.parameters() if p.is_floating_point()]
        norms = torch.stack([n.to(pl_module.device) for n in foreach_norm(tensors)])
        if self._any(trainer, not bool(norms.isfinite().all())):
            self._stop(trainer, "a weight is NaN or infinite", trainer.global_step)

    def _check_losses(self, trainer: Trainer) -> None:
        if not self._losses:
            return
        steps, losses = zip(*self._losses, strict=True)
        self._losses = []
        bad = (~torch.stack(losses).isfinite()).nonzero()
        if self._any(trainer, len(bad) > 0):
            index = int(bad[0]) if len(bad) else len(steps) - 1
            self._stop(trainer, f"the loss is {float(losses[index])}", steps[index])

    @staticmethod
    def _any(trainer: Trainer, mine: bool) -> bool:
        return bool(trainer.strategy.reduce_boolean_decision(mine, all=False))

    def _stop(self, trainer: Trainer, what: str, step: int) -> None:
        last = getattr(self.checkpointer, "last_ckpt", None)
        good = f"Last good checkpoint: {last}." if last else "No checkpoint was written yet."
        raise NonFiniteError(
            f"{what} at step {step} (epoch {trainer.current_epoch}). {good} "
            "Lower optimizer.lr, lengthen scheduler.warmup_epochs, or use precision=bf16-mixed "
            f"or 32. {self._how_to_replay()}"
        )

    def _how_to_replay(self) -> str:
        if self.keeper is None:
            return ""
        if self.keeper.folder is not None:
            return f"To run this step again: python3 -m solo.programs.replay '{self.keeper.folder}'"
        return (
            "To keep such a step, go on from the last checkpoint with ++performance.replay=True: "
            "the same steps come again."
        )


class ResumedRun(Callback):
    """Refuses to go on with a run whose epochs had another number of steps.

    Schedules of learning rates, momentum, masks and gates count optimizer steps. A longer run is
    one whose schedules are made anew; with epochs of another length no step means what it meant.
    Within an epoch the batches that are left are known only for the same processes and batch size.
    """

    def __init__(self) -> None:
        super().__init__()
        self._loaded: dict[str, Any] | None = None
        self._epoch: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """How long an epoch is, and how it is dealt out."""
        return dict(self._epoch)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the epoch of the run that wrote the checkpoint."""
        self._epoch = dict(state_dict)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Remember where the checkpoint stands until the length of an epoch is known."""
        loop = checkpoint["loops"]["fit_loop"]
        self._loaded = {
            "epochs": loop["epoch_progress"]["total"]["ready"],
            "whole": loop["epoch_loop.batch_progress"].get("is_last_batch", False),
            "steps": checkpoint["global_step"],
            "schedules": len(checkpoint.get("lr_schedulers", [])),
        }

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare what the checkpoint counted with what this run will count.

        Raises:
            CheckpointError: the epochs have another length, or rates another kind of schedule.
        """
        loaded, self._loaded = self._loaded, None
        before, self._epoch = self._epoch, _epoch_of(trainer, pl_module)
        if loaded is None:
            return
        if loaded["schedules"] != len(trainer.lr_scheduler_configs):
            raise CheckpointError(
                "The checkpoint is of a run with another scheduler.name: set it as it was there."
            )
        if "steps" not in before and loaded["whole"] and loaded["epochs"]:  # of another program
            before = {"steps": loaded["steps"] / loaded["epochs"]}
        now = self._epoch
        if "steps" in now and before.get("steps", now["steps"]) != now["steps"]:
            raise CheckpointError(
                f"The checkpoint was written in a run with epochs of {before['steps']:g} optimizer "
                f"steps, and an epoch of this run has {now['steps']}: its schedules would go wrong."
                f" Keep the images, limit_train_batches, accumulate_grad_batches and "
                f"optimizer.batch_size x devices x nodes as they were: with other devices, set "
                f"optimizer.batch_size so that the product stays."
            )
        dealt = [
            key for key in ("processes", "batch_size") if before.get(key, now[key]) != now[key]
        ]
        if dealt and not loaded["whole"]:
            was, is_now = ({key: state[key] for key in dealt} for state in (before, now))
            raise CheckpointError(
                f"The checkpoint was written within an epoch with {was}, and this run has {is_now}:"
                " which images the epoch has seen is not known. Take a checkpoint from the end of "
                "an epoch, or go on as before and change it then."
            )


def _epoch_of(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """Optimizer steps of an epoch, where they are known, and among how many it is dealt out."""
    batches, each = trainer.num_training_batches, trainer.accumulate_grad_batches
    steps = {} if batches == float("inf") else {"steps": math.ceil(batches / each)}
    dealt = {"processes": trainer.world_size, "batch_size": getattr(module, "batch_size", None)}
    return {**steps, **dealt}


class EpochSeeder(Callback):
    """Seeds `random`, numpy and torch from (seed, epoch, rank, batch) when a batch starts.

    What a training step draws (dropout, masks of MAE, ...) then depends on nothing before it, so
    that a resumed run repeats a straight one, wherever it goes on. Augmentations have seeds of
    their own, see `solo.data.loading`.
    """

    def __init__(self, seed: int):
        super().__init__()
        self.seed = seed

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seed for what happens before the first batch (clustering, the order of batches)."""
        self._seed(trainer, 0)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed for the step."""
        self._seed(trainer, 1 + batch_idx)

    def _seed(self, trainer: Trainer, part: int) -> None:
        seed = mix(self.seed, trainer.current_epoch, trainer.global_rank, part)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
