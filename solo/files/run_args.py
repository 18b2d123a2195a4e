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


def read_args(path: str | Path) -> dict[str, Any] | None:
    """The configuration of the run that a file or a folder comes from, or None.

    An exported encoder carries it inside; a checkpoint has it beside itself, as `args.json`.

    Args:
        path: the file, or the folder of the run.

    Raises:
        CheckpointError: `args.json` is there and is no JSON object.
    """
    path = Path(path)
    if path.suffix == ".safetensors" and (found := _embedded(path)) is not None:
        return found
    file = (path if path.is_dir() else path.parent) / "args.json"
    if not file.exists():
        exported = sorted(path.glob("*.safetensors")) if path.is_dir() else []
        return _embedded(exported[0]) if len(exported) == 1 else None
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
