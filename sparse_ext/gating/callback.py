# SPDX-License-Identifier: MIT
"""The only Lightning glue of gated encoders: epochs, idle gradients, what is logged."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from solo.errors import CheckpointError
from solo.utils.encoders import encoders_of
from sparse_ext.gating.branches import Meter
from sparse_ext.gating.encoder import Gating, gating_of
from sparse_ext.gating.step import idle_parameters


class GatingCallback(Callback):
    """Tells gated encoders the epoch, and logs what their gates do as `gating/...`.

    Per epoch of training: means over all images of every branch with gates: `rho`,
    `flops_reduction`, and one value per layer (`rate/layer1.0`); with the branch's name in front
    where there are several (`gating/a1/rho`). A branch that only the momentum encoder takes is
    measured there, every other in the online encoder. Per validation: `gating/val_...` of the
    branch `gating.eval`.
    """

    def __init__(self) -> None:
        self._meters: dict[str, Meter] = {}
        self._figures: dict[str, Tensor] = {}
        self._steps = 0
        self._device = torch.device("cpu")
        self._length: int | None = None
        self._ended = False

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Advance those schedules of the method that count epochs."""
        self._device = pl_module.device
        for gating in gatings_of(pl_module):
            gating.context.epoch = trainer.current_epoch
        self._meters, self._figures, self._steps = {}, {}, 0

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Advance those schedules of the method that count optimizer steps."""
        for gating in gatings_of(pl_module):
            gating.method.advance(gating.layers, self.progress(trainer))

    def progress(self, trainer: Trainer) -> float:
        """Share of the optimizer steps that have been taken; 1 where an extended run has ended."""
        return 1.0 if self._ended else trainer.global_step / trainer.estimated_stepping_batches

    def state_dict(self) -> dict[str, Any]:
        """How long the run is that the schedules are made for, and whether they have ended."""
        return {} if self._length is None else {"length": self._length, "ended": self._ended}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the length of the run that wrote the checkpoint."""
        self._length, self._ended = state_dict.get("length"), state_dict.get("ended", False)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let a run become longer only once its schedules have ended, where they stay.

        Raises:
            CheckpointError: they have not: channels would come back, or go, at another step.
        """
        before, self._length = self._length, int(trainer.estimated_stepping_batches)
        settled = getattr(gatings_of(pl_module)[0].config, "settled", None)
        if before in (None, self._length) or settled is None or self._ended:
            return
        if trainer.global_step < settled * before:
            raise CheckpointError(
                f"The checkpoint is of a run of {before} optimizer steps, and this run has "
                f"{self._length}: its gates have not reached their final density yet (they do at "
                f"step {math.ceil(settled * before)}), and would get there at another step. Finish "
                f"the run with max_epochs as it was, and extend it then."
            )
        self._ended = True

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Parameters that no pass has used are left alone: no weight decay, no momentum."""
        online = gatings_of(pl_module)[0]
        for parameter in idle_parameters(pl_module.backbone, online):  # type: ignore[arg-type]
            parameter.grad = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the passes of this step into the means, and let go of their graphs."""
        passes = [list(gating.context.tape.values()) for gating in gatings_of(pl_module)]
        method = gatings_of(pl_module)[0].method
        taken = {done.branch for done in passes[0]}
        others = (done for tape in passes[1:] for done in tape if done.branch not in taken)
        for done in (*passes[0], *others):
            if done.branch in method.gated:
                self._meters.setdefault(done.branch, Meter()).add(done)
        self._add_figures(method.figures(passes[0], passes[1] if len(passes) > 1 else []))
        for gating in gatings_of(pl_module):
            gating.context.tape.clear()

    def _add_figures(self, figures: dict[str, Tensor]) -> None:
        self._steps += 1
        for name, value in figures.items():
            self._figures[name] = self._figures.get(name, 0) + value.detach()

    def epoch_state(self) -> dict[str, Any]:
        """What this epoch has gathered so far, for a run that is stopped within it."""
        return {
            "meters": {branch: meter.state() for branch, meter in self._meters.items()},
            "figures": {name: torch.as_tensor(v).cpu() for name, v in self._figures.items()},
            "steps": self._steps,
        }

    def restore_epoch(self, state: dict[str, Any]) -> None:
        """Go on gathering from what `epoch_state` has returned."""
        device = self._device
        meters = state["meters"].items()
        self._meters = {branch: Meter.restored(meter, device) for branch, meter in meters}
        self._figures = {name: value.to(device) for name, value in state["figures"].items()}
        self._steps = state["steps"]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the means of the epoch, averaged over the processes."""
        log = {name: float(value) / self._steps for name, value in self._figures.items()}
        several = len(gatings_of(pl_module)[0].method.gated) > 1
        for branch, meter in self._meters.items():
            prefix = f"{branch}/" if several else ""
            log |= {f"{prefix}{name}": value for name, value in meter.means().items()}
        _log(pl_module, log)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what was measured, so that figures are of the validation images alone."""
        gatings_of(pl_module)[0].context.collect()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what the online encoder computed for the validation images."""
        means = gatings_of(pl_module)[0].context.collect()
        if not trainer.sanity_checking:
            _log(pl_module, {f"val_{name}": value for name, value in means.items()})


class FineTuning(GatingCallback):
    """Gates while a pretrained encoder is fine-tuned: all schedules have ended.

    The parameters of branches that are not in use are frozen. The validation images are measured
    by `solo.methods.linear`, as in every evaluation.
    """

    def __init__(self) -> None:
        super().__init__()
        self._ended = True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Freeze what the chosen branch does not use."""
        (gating,) = gatings_of(pl_module)
        branches = {gating.context.evaluation}
        for parameter in gating.method.idle(pl_module.backbone, branches):  # type: ignore[arg-type]
            parameter.requires_grad = False

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the schedules where they stood at the end of pretraining."""
        super().on_train_epoch_start(trainer, pl_module)
        for gating in gatings_of(pl_module):
            gating.context.epoch = FINISHED

    def progress(self, trainer: Trainer) -> float:
        """Share of the run that schedules see: all of it, as at the end of pretraining."""
        return 1.0

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do nothing: the fine-tuned module measures its own validation."""

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do nothing: the fine-tuned module logs its own validation."""


FINISHED = 10**6  # an epoch after the end of every schedule


def gatings_of(module: LightningModule) -> list[Gating]:
    """The gatings of a module's encoders, online first."""
    found = map(gating_of, encoders_of(module).values())
    return [gating for gating in found if gating is not None]


def callback_of(module: LightningModule) -> GatingCallback:
    """The gating callback of a module, made at the first call."""
    return module.__dict__.setdefault("_gating_callback", GatingCallback())


def _log(module: LightningModule, figures: dict[str, float]) -> None:
    module.log_dict({f"gating/{name}": value for name, value in figures.items()}, sync_dist=True)
