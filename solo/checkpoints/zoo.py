# SPDX-License-Identifier: MIT
"""The manifest of recipes, published figures and checkpoints: `zoo/manifest.json`."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from solo.errors import CheckpointError, did_you_mean
from solo.recipes import place


def manifest_path() -> Path:
    """`$SOLO_ZOO/manifest.json`, or that of the checkout or the package which this file lies in."""
    return Path(os.environ.get("SOLO_ZOO", place("zoo"))) / "manifest.json"


def read_manifest() -> dict[str, Any]:
    """The manifest, or one without models where the package was installed without `zoo/`.

    Raises:
        CheckpointError: it is damaged.
    """
    path = manifest_path()
    if not path.exists():
        return {"models": []}
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if all(isinstance(model["name"], str) for model in manifest["models"]):
            return manifest
        reason = "a model has no name"
    except (ValueError, KeyError, TypeError, OSError) as error:
        reason = f"{type(error).__name__}: {error}"
    raise CheckpointError(f"{path}: the zoo's manifest is damaged ({reason}); check it out again.")


def sha256(path: Path) -> str:
    """Hash of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def resolve(name_or_path: str | Path) -> Path:
    """The file or folder that a zoo name or a path means; whether the path exists is not checked.

    Raises:
        CheckpointError: a zoo name for which no checkpoint ships, one whose file is not the one
            the manifest describes, or a name that is neither in the zoo nor on the disk.
    """
    name = str(name_or_path)
    manifest = read_manifest()
    models = {m["name"]: m for m in (*manifest["models"], *manifest.get("encoders", ()))}
    if name in models and not Path(name).exists():
        return _shipped(models[name])
    looks_like_a_name = not Path(name).suffix and len(Path(name).parts) == 1
    if looks_like_a_name and not Path(name).exists():
        near = did_you_mean(name, models)
        near = near if near.startswith("Did") else f"The zoo is listed in '{manifest_path()}'."
        raise CheckpointError(f"'{name}' is neither a model of the zoo nor a path. {near}")
    return Path(name_or_path)


def _shipped(model: dict[str, Any]) -> Path:
    checkpoint = model.get("checkpoint")
    if not checkpoint:
        raise CheckpointError(
            f"No checkpoint ships for '{model['name']}'. Train it with: {model['command']}"
        )
    path = manifest_path().parent / checkpoint["path"]
    if not path.exists():
        raise CheckpointError(f"The zoo's checkpoint '{path}' is missing: check out zoo/ again.")
    if sha256(path) != checkpoint["sha256"]:
        raise CheckpointError(f"{path}: not the file that the manifest describes (sha256 differs).")
    return path
