# SPDX-License-Identifier: MIT
"""Iterative magnitude pruning in a run folder (section 12.2; Frankle and Carbin; Caron et al.).

Level 0 is the dense run. Level k trains under the mask of level k-1 without its smallest weights,
from the reset weights, with a fresh head, optimizer and schedule. A level that is complete is not
trained again; one that was cut off goes on from its checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from solo.args.common import count_devices
from sparse_ext.tickets import run_folder
from sparse_ext.tickets.sweeps import iterative_pruning
from sparse_ext.tickets.sweeps.one_level import Training

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import Tensor

    from sparse_ext.tickets.config import TicketsConfig
    from sparse_ext.tickets.run_folder import Level, RunFolder


def sweep(cfg: DictConfig, config: TicketsConfig) -> RunFolder:
    """Run the sweep of `cfg`, or what is left of it.

    Args:
        cfg: composed configuration of a pretraining run.
        config: its section `tickets`.

    Returns:
        the run folder, complete.

    Raises:
        SoloError: a mistake in the configuration, or the folder belongs to another run.
    """
    training = Training(cfg, "tickets", config)
    layers = iterative_pruning.restricted(training.encoder(), config.layers, config.first_convs)
    full = {
        n: torch.ones(tuple(m.weight.shape), dtype=torch.bool)  # type: ignore[arg-type]
        for n, m in layers.items()
    }
    with training.alone():
        training.claim()
        for number in range(config.levels + 1):
            level = training.folder.level(number)
            if level.done is None:
                _run_level(training, level, config, full)
            training.report(level)
    return training.folder


def rewind_step(cfg: DictConfig, samples: int) -> int:
    """How many optimizer steps fit into that many training images."""
    batch = cfg.optimizer.batch_size * count_devices(cfg) * (cfg.get("num_nodes") or 1)
    return samples // (batch * (cfg.get("accumulate_grad_batches") or 1))


def next_masks(level: Level, rate: float) -> dict[str, Tensor]:
    """The masks of the level after `level`, from its final weights."""
    weights = run_folder.load_weights(level.final)
    masks = level.masks()
    return iterative_pruning.prune_smallest({n: weights[f"{n}.weight"] for n in masks}, masks, rate)


def _run_level(
    training: Training, level: Level, config: TicketsConfig, full: dict[str, Tensor]
) -> None:
    first = training.folder.level(0)
    reinit = level.number > 0 and config.reset == "random_reinit"
    if training.first_rank:
        before = training.folder.level(level.number - 1)
        masks = next_masks(before, config.rate) if level.number else full
        training.prepare(level, masks, reinit)
    run_folder.wait_for(level.initial if reinit else level.mask)
    if level.number:
        training.train(level, str(level.initial if reinit else first.rewind))
        return
    start = str(Path(config.start).resolve()) if config.start else ""
    step = rewind_step(training.parsed, config.rewind_samples)
    training.train(
        level, start, initial=str(first.initial), rewind=str(first.rewind), rewind_step=step
    )
