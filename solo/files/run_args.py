# SPDX-License-Identifier: MIT
"""`args.json`, the configuration that a run leaves beside its checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from solo.errors import CheckpointError


def read_args(path: str | Path) -> dict[str, Any] | None:
    """The configuration that a run wrote beside its checkpoint (`args.json`), or None.

    Args:
        path: the checkpoint, or the folder of the run.

    Raises:
        CheckpointError: the file is there and is no JSON object.
    """
    path = Path(path)
    file = (path if path.is_dir() else path.parent) / "args.json"
    if not file.exists():
        return None
    try:
        args = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{file}: damaged, no JSON ({error})") from error
    if not isinstance(args, dict):
        raise CheckpointError(f"{file}: expected a JSON object")
    return args
