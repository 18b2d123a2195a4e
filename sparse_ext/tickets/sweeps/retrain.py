# SPDX-License-Identifier: MIT
"""What masks and tickets are worth: training under the masks of a sweep, level by level."""

from __future__ import annotations

from typing import TYPE_CHECKING

from solo.errors import DataError
from sparse_ext.tickets import run_folder
from sparse_ext.tickets.run_folder import RunFolder
from sparse_ext.tickets.sweeps import random_masks
from sparse_ext.tickets.sweeps.one_level import Training

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import Tensor

    from sparse_ext.tickets.config import RetrainConfig
    from sparse_ext.tickets.run_folder import Level


def retrain(cfg: DictConfig, config: RetrainConfig) -> RunFolder:
    """Train `cfg` once for each level of a sweep; levels that are complete are skipped.

    Args:
        cfg: composed configuration of a pretraining run, such as `supervised.yaml`.
        config: its section `retrain`.

    Returns:
        the run folder, complete.

    Raises:
        SoloError: a mistake in the configuration, the source, or the folder belongs to another run.
    """
    source = RunFolder(config.source)
    levels = _levels(source, config)
    training = Training(cfg, "retrain", config)
    with training.alone():
        training.claim()
        for number in levels:
            level = training.folder.level(number)
            if level.done is None:
                _run_level(training, level, source, config)
            training.report(level)
    return training.folder


def masks_of(config: RetrainConfig, source: RunFolder, number: int, seed: int) -> dict[str, Tensor]:
    """The masks of kind `config.masks` at level `number`."""
    masks = source.level(number).masks()
    if config.masks == "random_global":
        return random_masks.random_global(masks, seed, number)
    if config.masks == "random_layer":
        return random_masks.random_layer(masks, seed, number)
    if config.masks == "natural":
        weights = run_folder.load_weights(source.level(0).final)
        dense = {name: weights[f"{name}.weight"] for name in masks}
        return random_masks.natural(masks, dense, seed, number)
    return dict(masks)


def _levels(source: RunFolder, config: RetrainConfig) -> list[int]:
    kind = source.facts()["kind"]
    if kind != "tickets":
        raise DataError(f"retrain.source={config.source} is a run of kind '{kind}', not a sweep")
    finished = [level.number for level in source.finished()]
    missing = sorted(set(config.levels) - set(finished))
    if missing or not finished:
        raise DataError(
            f"retrain.source={config.source} has no complete level {missing[0] if missing else 0}; "
            f"complete: {finished}. Let its sweep finish first"
        )
    return sorted(config.levels) or finished


def _run_level(training: Training, level: Level, source: RunFolder, config: RetrainConfig) -> None:
    reinit = config.init == "random_reinit"
    if training.first_rank:
        masks = masks_of(config, source, level.number, training.seed)
        training.prepare(level, masks, reinit)
    run_folder.wait_for(level.initial if reinit else level.mask)
    starts = {
        "random_reinit": level.initial,
        "winning_ticket": source.level(0).rewind,
        "final": source.level(level.number).final,
    }
    training.train(level, str(starts[config.init].resolve()))
