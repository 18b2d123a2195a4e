# SPDX-License-Identifier: MIT
"""Keeps the step whose loss is not finite, so that it can be run again by itself."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from solo.files.whole import whole_file, write_json

STEP_FILE = "step.pt"
MOST_BUFFERS = 256 * 2**20  # bytes that are copied in every step without being asked for


def random_state() -> dict[str, Any]:
    """The state of the generators that a training step draws from, as plain values."""
    name, keys, *rest = np.random.get_state()
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (name, [int(key) for key in keys], *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Take up what `random_state` has returned; the GPU's where there is one."""
    version, values, gauss = state["python"]
    random.setstate((version, tuple(values), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


class StepKeeper(Callback):
    """Writes `<run>/not-finite-step=<step>/` when a loss is not finite; the run goes on.

    The folder holds args.json and step.pt: the batch as the method got it, the weights and buffers
    before the step, the state of all random generators, seed, epoch and step. `python3 -m
    solo.programs.replay FOLDER` runs the step again. Of several processes each keeps its own.

    Args:
        cfg: the run's configuration.
        logdir: folder of the method.
        always: look at every loss. By default only where the loss is on the CPU, because looking
            at one on a GPU waits for it, and where the buffers have at most 256 MB. A run that is
            resumed repeats its steps, so `always` can be turned on after the fact.

    Attributes:
        folder: of the step that was kept.
    """

    def __init__(self, cfg: DictConfig, logdir: str | Path, always: bool | None = None):
        super().__init__()
        self.cfg = cfg
        self.logdir = Path(logdir)
        self.always = always
        self.folder: Path | None = None
        self._before: dict[str, Any] = {}

    def _looks(self, device: torch.device) -> bool:
        on_host = device.type == "cpu"
        return self.folder is None and (on_host if self.always is None else self.always)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Become the last callback, so that what others change before a step is kept as changed."""
        trainer.callbacks = [c for c in trainer.callbacks if c is not self] + [self]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Agree on the folder of the run while all processes are together."""
        version = None if trainer.logger is None else trainer.logger.version
        self.run = self.logdir / str(trainer.strategy.broadcast(version or "offline"))
        size = sum(b.numel() * b.element_size() for b in pl_module.buffers())
        if self.always is None and size > MOST_BUFFERS:
            self.always = False

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember what the step will change: buffers (queues, centres) and random numbers."""
        if self._looks(pl_module.device):
            self._before = {
                "batch": batch,
                "batch_idx": batch_idx,
                "buffers": {name: b.detach().clone() for name, b in pl_module.named_buffers()},
                "random": random_state(),
            }

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Look at the loss, before the weights are touched."""
        if self._before and self._looks(loss.device) and not bool(loss.isfinite()):
            self._keep(trainer, pl_module, float(loss))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The step went well: nothing has to be kept of it."""
        self._before = {}

    def _keep(self, trainer: Trainer, module: LightningModule, loss: float) -> None:
        rank = f"-rank={trainer.global_rank}" if trainer.world_size > 1 else ""
        folder = self.run / f"not-finite-step={trainer.global_step}{rank}"
        folder.mkdir(parents=True, exist_ok=True)
        before = self._before
        content = {
            "batch": before["batch"],
            "batch_idx": before["batch_idx"],
            "state": {**module.state_dict(), **before["buffers"]},
            "random": before["random"],
            "step": trainer.global_step,
            "epoch": trainer.current_epoch,
            "batches": _finite(trainer.num_training_batches),
            "accumulated": trainer.accumulate_grad_batches,
            "seed": self.cfg.get("seed"),
            "world_size": trainer.world_size,
            "loss": loss,
        }
        with whole_file(folder / STEP_FILE) as file:
            torch.save(content, file)
        write_json(folder / "args.json", OmegaConf.to_container(self.cfg, resolve=True))
        self.folder = folder


def _finite(batches: float) -> int:
    """Batches of an epoch; 1 where nobody knows."""
    return int(batches) if batches != float("inf") else 1
