# SPDX-License-Identifier: MIT
"""Checkpoints that a run goes on from: whether they are whole, and what else they must hold."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from solo.checkpoints.files import read_checkpoint
from solo.checkpoints.writer import write_checkpoint
from solo.errors import CheckpointError

# beside the weights: what Lightning needs to go on, with the type of each
_STATE: dict[str, type] = {
    "epoch": int,
    "global_step": int,
    "loops": Mapping,  # type: ignore[type-abstract]
    "optimizer_states": list,
    "lr_schedulers": list,
}


def read_training_state(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint that a run is to go on from.

    The archive that torch writes has a checksum (CRC-32) of each of its parts: all of them are
    compared, since torch itself reads over flipped bits.

    Raises:
        CheckpointError: missing, truncated, damaged, or no state of a training run.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        raise CheckpointError(
            f"{path} holds weights but no state of a training run, so it cannot be continued; to "
            "evaluate it give it as pretrained_feature_extractor"
        )
    if path.is_file() and zipfile.is_zipfile(path):
        _compare_checksums(path)
    content = read_checkpoint(path)
    if missing := sorted({"loops", "optimizer_states", "lr_schedulers"} - set(content)):
        raise CheckpointError(
            f"{path} holds weights but no state of a training run ({', '.join(missing)}), so it "
            "cannot be continued"
        )
    return content


def check_training_state(content: Mapping[str, Any], path: str | Path) -> None:
    """Check that everything is in a checkpoint that Lightning needs to go on from it.

    Raises:
        CheckpointError: names what is missing or of another kind.
    """
    problem = None
    for key, kind in _STATE.items():
        value = content.get(key)
        if not isinstance(value, kind) or isinstance(value, bool) or (kind is int and value < 0):
            problem = f"its '{key}' " + (f"is {value!r:.60}" if key in content else "is missing")
            break
    else:
        if not content["optimizer_states"]:
            problem = "it has no state of an optimizer"
        elif "fit_loop" not in content["loops"]:
            problem = "its 'loops' have no progress of a fit"
        elif (counter := _no_count(content["loops"], "loops")) is not None:
            problem = f"its '{counter}' is no count"
        elif not all(map(_is_optimizer_state, content["optimizer_states"])):
            problem = "its 'optimizer_states' do not belong to the parameters that they name"
        elif not isinstance(content.get("pytorch-lightning_version"), str):
            problem = "it does not say which version of Lightning wrote it"
    if problem is not None:
        raise CheckpointError(f"{path} cannot be continued: {problem}")


def _no_count(node: Any, path: str, counts: bool = False) -> str | None:
    """Where in Lightning's loops something else than a count stands in a progress; None: nowhere.

    Args:
        node: a part of the loops.
        path: to it.
        counts: whether it is a part of a progress.
    """
    if not isinstance(node, Mapping):
        return path if counts and (not isinstance(node, int) or node < 0) else None
    parts = (_no_count(v, f"{path}.{k}", counts or "progress" in str(k)) for k, v in node.items())
    return next((part for part in parts if part is not None), None)


def _is_optimizer_state(state: Any) -> bool:
    """Whether a state has entries of the parameters in its groups, as torch numbers them."""
    groups = state.get("param_groups") if isinstance(state, Mapping) else None
    if not isinstance(groups, list) or not isinstance(state.get("state"), Mapping):
        return False
    if not all(isinstance(g, Mapping) and isinstance(g.get("params"), list) for g in groups):
        return False
    known = [index for group in groups for index in group["params"]]
    own = state["state"]
    if not all(type(index) is int for index in (*known, *own)):
        return False
    if not all(isinstance(entries, Mapping) for entries in own.values()):
        return False
    return sorted(known) == list(range(len(known))) and set(own) <= set(known)


def resumable(path: str | Path) -> Path:
    """`path` after a look into it, or a cleaned copy where torch's safe reader refuses the file.

    The copy is for files of solo-learn (SimSiam, NNSiam) with pickled methods among the weights.

    Raises:
        CheckpointError: see `read_training_state`.
    """
    path = Path(path)
    content = read_training_state(path)
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        folder = Path(tempfile.mkdtemp())
        return write_checkpoint(folder / path.name, content)
    return path


def _compare_checksums(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError) as error:
        bad = str(error)
    if bad is not None:
        raise CheckpointError(f"{path}: the file is damaged (checksum of {bad} differs)")
