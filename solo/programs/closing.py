# SPDX-License-Identifier: MIT
"""The end of a program: where everything is, what it found, and what one can do next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solo import extensions
from solo.errors import DataError, OutputError, SoloError
from solo.files.results import FILE, add_evaluations, read_results
from solo.monitoring.console import command, duration, say
from solo.monitoring.loggers import csv_of, last_checkpoint
from solo.programs import multirun

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from omegaconf import DictConfig


def finish(cfg: DictConfig, trainer: Trainer) -> None:
    """Print the folder of a run, its last checkpoint and figures, and the next commands.

    Args:
        cfg: parsed configuration.
        trainer: after the run, or of one that was finished before.
    """
    if not trainer.is_global_zero:
        return
    from solo.programs.epoch_lines import figures

    folder = csv_of(trainer.loggers).path.parent
    multirun.finished(folder)
    try:
        found = read_results(folder).get("run", {})
    except DataError:
        found = {}
    lines = {"folder": str(folder)}
    checkpoint = last_checkpoint(folder)
    if checkpoint is not None:
        lines["checkpoint"] = str(checkpoint)
    if found.get("metrics"):
        lines["figures"] = ", ".join(figures(found["metrics"]))
    if (folder / FILE).is_file():
        lines["results"] = str(folder / FILE)
    for extension in extensions.registered():
        try:
            lines |= extension.after_run(cfg, folder)
        except SoloError as error:
            say(f"note: {error}")
    took = found.get("seconds")
    done = found.get("epochs", trainer.current_epoch)
    epochs = "1 epoch" if done == 1 else f"{done} epochs"
    say(f"Done: {epochs}{f' in {duration(took)}' if took else ''}.", *_column(lines))
    steps = next_steps(cfg, folder) if checkpoint is not None else {}
    if steps:
        say("Next:", *_column(steps))


def next_steps(cfg: DictConfig, folder: Path) -> dict[str, str]:
    """Commands for what one does with the finished run in `folder`, by a few words."""
    steps, run = {}, shlex.quote(str(folder))
    own = cfg.data.get("path")  # a folder of images: every program finds its parts by itself
    if "method" in cfg and own and _labelled(cfg):
        recipe = "--config-path scripts/linear/custom --config-name any.yaml"
        program = command("linear", "python3 main_linear.py")
        keys = f"data.path={shlex.quote(str(own))} pretrained_feature_extractor={run}"
        steps["linear"] = f"{program} {recipe} {keys}"
    if "method" in cfg and _labelled(cfg):
        paths = {"train": cfg.data.get("train_path"), "val": cfg.data.get("val_path")}
        given = [f"--{k}_data_path {shlex.quote(str(p))}" for k, p in paths.items() if p]
        words = [f"--dataset {cfg.data.dataset}", *given, f"--pretrained_checkpoint_dir {run}"]
        steps["kNN"] = f"{command('knn', 'python3 main_knn.py')} {' '.join(words)}"
    if cfg.data.get("path"):
        program, images = command("embed", "python3 main_embed.py"), shlex.quote(str(cfg.data.path))
        steps["features"] = f"{program} {run} {images} -o features.npy"
    for extension in extensions.registered():
        steps |= extension.next_steps(folder)
    return steps


def _labelled(cfg: DictConfig) -> bool:
    """Whether there are labelled validation images."""
    from solo.data.catalogue import info_of

    required = info_of(cfg.data.dataset).path == "required"
    given = cfg.data.get("val_path") is not None or bool(cfg.data.get("val_fraction"))
    return not cfg.data.get("no_labels") and (not required or given)


def tell_run(
    folder: str | Path, program: str, entries: Sequence[Mapping[str, Any]], figures: Sequence[str]
) -> Path | None:
    """`solo.files.results.add_evaluations`; a folder that refuses it is said, and is no error."""
    try:
        return add_evaluations(folder, program, entries, figures)
    except OutputError as error:
        say(f"note: the results are not kept beside the run: {error}")
        return None


def _column(lines: Mapping[str, str]) -> list[str]:
    width = max(map(len, lines))
    return [f"  {name:<{width}}  {text}" for name, text in lines.items()]
