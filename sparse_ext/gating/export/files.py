# SPDX-License-Identifier: MIT
"""An exported gated encoder as a folder: `config.json` and `model.safetensors`."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from solo.checkpoints.files import write_tensors
from solo.errors import CheckpointError
from solo.files.whole import write_json
from sparse_ext.gating.export.encoder import OpenEncoder, from_description
from sparse_ext.masks import files as maskfile

FORMAT = "sparse_ext.gated/1"
CONFIG, MODEL = "config.json", "model.safetensors"
_HINT = "`save_gated` and `python3 -m sparse_ext.gating.export` write such folders."


def save_gated(encoder: OpenEncoder, folder: str | Path) -> Path:
    """Write `encoder` into `folder`, which is made; files that are there are replaced.

    Returns:
        the folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().cpu().contiguous() for k, v in encoder.state_dict().items()}
    write_tensors(folder / MODEL, tensors, {"format": FORMAT})
    write_json(folder / CONFIG, {"format": FORMAT, **encoder.describe()})
    return folder


def load_gated(folder: str | Path, device: str | torch.device = "cpu") -> OpenEncoder:
    """The encoder in a folder that `save_gated` wrote, in eval mode.

    Args:
        folder: with `config.json` and `model.safetensors`.
        device: where to put it.

    Raises:
        CheckpointError: a file is missing, damaged, of another format, or the two do not fit.
    """
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file. {_HINT}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content.pop("format", None)
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: damaged, no JSON object ({error}). {_HINT}") from error
    if found != FORMAT:
        raise CheckpointError(f"{path}: format {found!r} instead of {FORMAT!r}. {_HINT}")
    encoder = from_description(content)
    tensors, _ = maskfile.read_tensors(Path(folder) / MODEL, FORMAT, _HINT)
    try:
        encoder.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{folder}: {CONFIG} and {MODEL} do not fit: {reason}") from error
    return encoder.to(device).eval()
