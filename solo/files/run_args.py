# SPDX-License-Identifier: MIT
"""The configuration of a run: `args.json` beside its checkpoints, or inside an exported file."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from solo.errors import CheckpointError

#: metadata of an exported file that hold the configuration of its run
EMBEDDED = "solo.args"
_ENCODER = ("method", "pretrain_method", "backbone")  # what both say of the same encoder


def read_args(path: str | Path) -> dict[str, Any] | None:
    """The configuration of the run that a file or a folder comes from, or None.

    A checkpoint has it beside itself, as `args.json`. An exported encoder carries the part that
    rebuilds it inside, and can lie anywhere: a file beside it counts if it is of the same encoder.

    Args:
        path: the file, or the folder of the run.

    Raises:
        CheckpointError: `args.json` is there and is no JSON object.
    """
    path = Path(path)
    inside = _embedded(path) if path.suffix == ".safetensors" else None
    file = (path if path.is_dir() else path.parent) / "args.json"
    if not file.exists():
        exported = sorted(path.glob("*.safetensors")) if path.is_dir() else []
        return _embedded(exported[0]) if len(exported) == 1 else inside
    try:
        beside = _object(file)
    except CheckpointError:
        if inside is None:
            raise
        return inside
    fits = inside is None or all(inside.get(key) == beside.get(key) for key in _ENCODER)
    return beside if fits else inside


def _object(file: Path) -> dict[str, Any]:
    """What a JSON file holds; CheckpointError where that is no object."""
    try:
        args = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{file}: damaged, no JSON ({error})") from error
    if not isinstance(args, dict):
        raise CheckpointError(f"{file}: expected a JSON object")
    return args


def _embedded(file: Path) -> dict[str, Any] | None:
    """The configuration in the header of a safetensors file; a damaged file has none."""
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            header = json.loads(opened.read(min(length, 100_000_000)))
        args = json.loads(header["__metadata__"][EMBEDDED])
        return args if isinstance(args, dict) else None
    except (OSError, ValueError, KeyError, TypeError, struct.error, RecursionError):
        return None
