# SPDX-License-Identifier: MIT
"""Finds the checkpoint of a killed run of the same experiment."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from solo.args.check import fill
from solo.args.schema import Run
from solo.checkpoints.files import read_args
from solo.data.catalogue import known
from solo.errors import CheckpointError
from solo.monitoring.loggers import checkpoints, last_checkpoint


class Found(NamedTuple):
    """A run to go on with.

    Attributes:
        folder: of the run.
        wandb_run_id: as in its args.json.
        checkpoint: its newest whole one; None: it was stopped before it had any.
        state: what is in that checkpoint.
    """

    folder: Path
    wandb_run_id: str | None
    checkpoint: Path | None = None
    state: Mapping[str, Any] | None = None


# What may differ between a run and its continuation: where things lie, how fast they go.
_FREE = (
    "checkpoint",
    "auto_resume",
    "auto_umap",
    "quality",
    "probes",
    "milestones",
    "resume_from_checkpoint",
    "wandb_run_id",
    "wandb.enabled",
    "wandb.offline",
    "tensorboard",
    "debug_augmentations",
    "data.num_workers",
    "devices",
    "num_nodes",
    "strategy",
    "enable_progress_bar",
    "enable_model_summary",
    "log_every_n_steps",
    "profiler",
    "dry_run",
    "report",
    "augmentations_cfg",
    "wandb_cfg",
    "performance",
)
_PATHS = ("data.train_path", "data.val_path")


def fingerprint(cfg: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """Every dotted key of `cfg` that changes the result of a run, with its value.

    Devices and nodes count by their product with the batch size. Paths count for datasets of the
    user's own; the others are the same wherever they lie (a local disk, after a requeue).
    """
    if isinstance(cfg, DictConfig):
        cfg = OmegaConf.to_container(cfg, resolve=True)
    flat = dict(_flatten(cfg))
    free = (*_FREE, *(() if known(_get(cfg, "data.dataset")).any_images else _PATHS))
    kept = {
        key: value
        for key, value in flat.items()
        if not any(key == name or key.startswith(name + ".") for name in free)
    }
    kept["processes"] = _processes(cfg)
    return kept


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Keys in which two fingerprints differ; a key that is absent counts as null."""
    return sorted(k for k in {*one, *other} if not _same(one.get(k), other.get(k)))


class AutoResumer:
    """Looks through a folder of runs for the newest one with the same fingerprint.

    Args:
        checkpoint_dir: folder of the method.
        max_hours: older checkpoints are passed over.
    """

    # solo-learn's list; all of these are part of the fingerprint.
    SHOULD_MATCH = (
        "name",
        "backbone",
        "method",
        "data.dataset",
        "max_epochs",
        "optimizer.name",
        "optimizer.batch_size",
        "optimizer.lr",
        "optimizer.weight_decay",
        "wandb.project",
        "wandb.entity",
        "pretrained_feature_extractor",
    )

    def __init__(self, checkpoint_dir: str | Path = Path("trained_models"), max_hours: float = 36):
        self.checkpoint_dir = Path(checkpoint_dir)
        self.max_hours = max_hours

    @staticmethod
    def add_and_assert_specific_cfg(cfg: DictConfig) -> DictConfig:
        """Set the defaults of the section `auto_resume`."""
        fill(cfg, Run, "auto_resume")
        return cfg

    def find_checkpoint(self, cfg: DictConfig) -> tuple[Path | None, str | None]:
        """Find the newest checkpoint of an unfinished run with the same configuration.

        Args:
            cfg: parsed configuration of the run that starts.

        Returns:
            (path, wandb run id), or (None, None). Whether the file is whole is not looked at; see
            `find`.
        """
        found = self.find(cfg, look=False)
        if found is None or found.checkpoint is None:
            return None, None
        return found.checkpoint, found.wandb_run_id

    def find(self, cfg: DictConfig, look: bool = True) -> Found | None:
        """The run that this configuration continues.

        A damaged newest checkpoint is named in a warning, and the one before it is taken. A run
        that was killed before its first checkpoint is found without one: its folder is used again.
        A run that only differs in length is named in a warning, with the way to extend it.

        Args:
            cfg: parsed configuration of the run that starts.
            look: into the checkpoints, whether they are whole.

        Raises:
            CheckpointError: all checkpoints of the run are damaged.
        """
        mine = fingerprint(cfg)
        begun = None
        for folder, args in self._runs():
            different = differences(fingerprint(args), mine)
            saved = checkpoints(folder)
            if different == ["max_epochs"] and saved:
                warnings.warn(
                    f"{saved[-1]} is the same run with max_epochs={args.get('max_epochs')}; "
                    "its schedules end there, so it is not resumed by itself. To extend it: "
                    f"resume_from_checkpoint='\"{saved[-1]}\"'",
                    stacklevel=2,
                )
            if different:
                continue
            run_id = args.get("wandb_run_id")
            if saved and not look:
                return Found(folder, run_id, saved[-1])
            if saved:
                return Found(folder, run_id, *_newest_whole(saved))
            begun = begun or Found(folder, run_id)
        return begun

    def _runs(self) -> Iterator[tuple[Path, Mapping[str, Any]]]:
        """Folders of runs with their configurations, the one that was written last first."""
        oldest = time.time() - self.max_hours * 3600
        ages = []
        for args in sorted(self.checkpoint_dir.rglob("args.json")):
            if (args.parent.parent / "args.json").is_file():
                continue  # something that a run has put aside, such as its best epoch
            newest = last_checkpoint(args.parent) or args
            if newest.stat().st_ctime >= oldest:
                ages.append((newest.stat().st_ctime, args))
        for _, args in sorted(ages, reverse=True):
            try:
                content = read_args(args.parent)
            except CheckpointError as error:
                said = f"{args} is not readable; its run cannot be resumed ({error})"
                warnings.warn(said, stacklevel=2)
                continue
            if content is not None:
                yield args.parent, content


def _newest_whole(saved: list[Path]) -> tuple[Path, Mapping[str, Any]]:
    """The newest checkpoint of a run that is not damaged, and what it holds."""
    from solo.checkpoints.training_state import check_training_state, read_training_state

    problems = []
    for path in reversed(saved):
        try:
            state = read_training_state(path)
            check_training_state(state, path)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        if problems:
            print(f"warning: {'; '.join(problems)} Going on from {path} instead.", flush=True)
        return path, state
    raise CheckpointError(
        f"No checkpoint of {saved[0].parent} can be continued: {'; '.join(problems)}. To train "
        "anew, move that folder away or set auto_resume.enabled=False."
    )


def _flatten(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _flatten(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from _flatten(value, f"{path}.{index}")
    elif node is not None:
        yield path, node


def _get(cfg: Mapping[str, Any], key: str) -> Any:
    for part in key.split("."):
        cfg = cfg.get(part) if isinstance(cfg, Mapping) else None
    return cfg


def _processes(cfg: Mapping[str, Any]) -> int | str:
    devices = cfg.get("devices", "auto")
    count = len(devices) if isinstance(devices, (list, tuple)) else devices
    nodes = cfg.get("num_nodes") or 1
    both = isinstance(count, int) and isinstance(nodes, int)
    return count * nodes if both else f"{count} x {nodes}"


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) or isinstance(other, float):
        try:
            return abs(one - other) <= 1e-9 * max(abs(one), abs(other))
        except TypeError:
            return False
    return one == other
