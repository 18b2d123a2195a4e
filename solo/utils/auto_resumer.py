# SPDX-License-Identifier: MIT
"""Finds the checkpoint of a killed run of the same experiment."""

from __future__ import annotations

import json
import time
import warnings
from collections import namedtuple
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from solo.args.check import fill
from solo.args.schema import AutoResume
from solo.data.catalogue import known
from solo.monitoring.loggers import last_checkpoint

Checkpoint = namedtuple("Checkpoint", ["creation_time", "args", "checkpoint"])

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
        fill(cfg, "auto_resume", AutoResume)
        return cfg

    def find_checkpoint(self, cfg: DictConfig) -> tuple[Path | None, str | None]:
        """Find the newest checkpoint of an unfinished run with the same configuration.

        Args:
            cfg: parsed configuration of the run that starts.

        Returns:
            (path, wandb run id), or (None, None). A run that only differs in length is named in a
            warning, with the way to extend it.
        """
        mine = fingerprint(cfg)
        for found in sorted(self._candidates(), key=lambda c: c.creation_time, reverse=True):
            args = json.loads(found.args.read_text(encoding="utf-8"))
            different = differences(fingerprint(args), mine)
            if not different:
                return found.checkpoint, args.get("wandb_run_id")
            if different == ["max_epochs"]:
                warnings.warn(
                    f"{found.checkpoint} is the same run with max_epochs={args.get('max_epochs')}; "
                    "its schedules end there, so it is not resumed by itself. To extend it: "
                    f"resume_from_checkpoint='\"{found.checkpoint}\"'",
                    stacklevel=2,
                )
        return None, None

    def _candidates(self) -> Iterator[Checkpoint]:
        oldest = time.time() - self.max_hours * 3600
        for args in sorted(self.checkpoint_dir.rglob("args.json")):
            checkpoint = last_checkpoint(args.parent)
            if checkpoint is None or checkpoint.stat().st_ctime < oldest:
                continue
            try:
                json.loads(args.read_text(encoding="utf-8"))
            except ValueError:
                warnings.warn(f"{args} is not readable; its run cannot be resumed", stacklevel=2)
                continue
            yield Checkpoint(checkpoint.stat().st_ctime, args, checkpoint)


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
    return count * nodes if isinstance(count, int) else f"{count} x {nodes}"


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) or isinstance(other, float):
        try:
            return abs(one - other) <= 1e-9 * max(abs(one), abs(other))
        except TypeError:
            return False
    return one == other
