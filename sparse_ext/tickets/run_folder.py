# SPDX-License-Identifier: MIT
"""The run folder of a sweep: one folder per level, complete once its `done.json` is there.

    run.json                  what it is, and a fingerprint of the configuration
    level_00/initial.safetensors, rewind.safetensors
    level_NN/mask.safetensors, final.safetensors, done.json
    level_NN/train/<method>/<version>/       the training run: checkpoint, args.json, metrics.csv

Every file appears at once and complete, or not at all; `done.json` comes last.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from solo.checkpoints.files import write_tensors
from solo.errors import CheckpointError, ConfigError, DataError
from solo.files.lock import FolderLock
from solo.files.whole import write_json
from sparse_ext.masks import files as maskfile
from sparse_ext.masks.mask_set import MaskSet

FORMAT = "sparse_ext.weights/1"
RUN, DONE = "run.json", "done.json"
PATIENCE = 600  # seconds that other ranks wait for a file of the first one


def encoder_weights(backbone: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of an encoder by name, on the CPU, without masks."""
    state = backbone.state_dict()
    masks = {k for k in state if k.endswith(".mask")}
    return {k: v.detach().cpu().contiguous() for k, v in state.items() if k not in masks}


def save_weights(path: str | Path, weights: Mapping[str, Tensor]) -> None:
    """Write the weights of an encoder as safetensors."""
    write_tensors(path, dict(weights), {"format": FORMAT})


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the weights that `save_weights` wrote.

    Raises:
        CheckpointError: the file is missing, damaged or something else.
    """
    hint = "Weight files are written by main_tickets.py."
    tensors, _ = maskfile.read_tensors(path, FORMAT, hint)
    return {k: v.clone() for k, v in tensors.items()}  # in memory, whatever becomes of the file


class Level:
    """One level of sparsity in a run folder and its files.

    Args:
        folder: its folder, which need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mask = folder / "mask.safetensors"
        self.initial = folder / "initial.safetensors"
        self.rewind = folder / "rewind.safetensors"
        self.final = folder / "final.safetensors"
        self.train = folder / "train"

    @property
    def number(self) -> int:
        """Number of prunings before this level."""
        return int(self.folder.name.rpartition("_")[2])

    @property
    def done(self) -> dict[str, Any] | None:
        """The record of a complete level; None if something is missing or was cut off."""
        try:
            record = json.loads((self.folder / DONE).read_text(encoding="utf-8"))
            complete = all(
                (self.folder / name).stat().st_size == size
                for name, size in record["files"].items()
            )
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            return None
        return record if complete else None

    def finish(self, record: Mapping[str, Any]) -> None:
        """Write the record; from now on the level is complete."""
        paths = sorted(self.folder.glob("*.safetensors"))
        files = {path.name: path.stat().st_size for path in paths}
        write_json(self.folder / DONE, {"level": self.number, **record, "files": files})

    def masks(self) -> MaskSet:
        """The masks that the level was trained with."""
        return MaskSet.load(self.mask)


class RunFolder:
    """The folder of a series of trainings: its facts and its levels.

    Args:
        folder: where it is or will be.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def level(self, number: int) -> Level:
        """Level `number`, whether or not it exists."""
        return Level(self.folder / f"level_{number:02d}")

    def finished(self) -> list[Level]:
        """The levels that are complete, in the order of their number."""
        levels = [Level(path) for path in sorted(self.folder.glob("level_[0-9]*"))]
        return [level for level in levels if level.done is not None]

    def facts(self) -> dict[str, Any]:
        """The content of `run.json`: what the series is.

        Raises:
            DataError: this is not a run folder, or its record is damaged.
        """
        path = self.folder / RUN
        if not path.is_file():
            inside = sorted(str(p.parent) for p in self.folder.rglob(RUN))
            hint = f"Did you mean '{inside[0]}'?" if inside else "main_tickets.py makes them."
            raise DataError(f"{self.folder}: no run folder of tickets (no {RUN}). {hint}")
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{path}: damaged, no JSON ({error})") from error

    def claim(self, facts: Mapping[str, Any]) -> None:
        """Make it the folder of this run, or check that it is.

        Raises:
            ConfigError: it belongs to a run of another configuration.
        """
        from solo.utils.auto_resumer import differences

        if (self.folder / RUN).is_file():
            theirs, ours = self.facts()["fingerprint"], facts["fingerprint"]
            for key in differences(theirs, ours)[:1]:
                raise ConfigError(
                    f"{self.folder} holds a run with {key}={theirs.get(key)!r}, this one has "
                    f"{ours.get(key)!r}: choose another name, tickets.dir or retrain.dir, or "
                    "delete that folder"
                )
        write_json(self.folder / RUN, facts)

    def alone(self) -> FolderLock:
        """Keeps a second program out while it is entered, which raises BusyError there."""
        return FolderLock(self.folder)


def digest(path: Path) -> str:
    """A short hash of a file's content."""
    return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()


def wait_for(path: Path, patience: float = PATIENCE) -> None:
    """Wait until rank 0 has written the file at `path`.

    Raises:
        CheckpointError: it does not come.
    """
    end = time.monotonic() + patience
    while not path.is_file():
        if time.monotonic() > end:
            raise CheckpointError(f"{path} was not written within {patience:.0f} s by rank 0")
        time.sleep(0.1)
