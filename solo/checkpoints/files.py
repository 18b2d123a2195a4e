# SPDX-License-Identifier: MIT
"""Opens weight files and takes an encoder's part out of them. Public through `weights`."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from solo import extensions
from solo.checkpoints import restricted_pickle
from solo.checkpoints.sources import rank, state_dicts
from solo.errors import CheckpointError, did_you_mean
from solo.files.run_args import read_args
from solo.files.whole import whole_file

__all__ = ["Encoder", "encoder_state", "existing_file", "read_args", "read_checkpoint"]
Encoder = Literal["online", "momentum"]
SUFFIXES = (".ckpt", ".pth", ".pt", ".safetensors")
# the second of each: releases of solo-learn before 1.0.3
PREFIXES = {
    "online": ("backbone.", "encoder."),
    "momentum": ("momentum_backbone.", "momentum_encoder."),
}


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a weight file: a Lightning checkpoint, a plain state dict, or safetensors.

    Tensors are read onto the CPU, with `weights_only=True`. Files that this refuses (solo-learn's
    SimSiam and NNSiam) are read once more without whatever is no tensor or plain container.

    Returns:
        the file's dictionary; `state_dict` is always there.

    Raises:
        CheckpointError: missing, a folder, empty, truncated, or no weights in it.
    """
    path = existing_file(Path(path))
    try:
        content = _read_safetensors(path) if path.suffix == ".safetensors" else _torch_load(path)
    except Exception as error:  # torch.load raises anything on a damaged file
        raise CheckpointError(_damage(path, error)) from error
    if isinstance(content, Mapping):
        for state in (content.get("state_dict"), content.get("model"), content):
            if isinstance(state, Mapping) and any(isinstance(v, Tensor) for v in state.values()):
                rest = {} if state is content else content
                return {**rest, "state_dict": _unpacked(state, path)}
        nested = list(state_dicts(content))  # DINO: teacher and student
        if nested:
            _, best = min(nested, key=lambda found: (rank(found[0]), -len(found[1])))
            return {**content, "state_dict": _unpacked(best, path)}
    raise CheckpointError(
        f"{path}: there are no weights in this file. "
        "Expected a Lightning checkpoint with a 'state_dict', or a dictionary of tensors."
    )


def _unpacked(state: Mapping[str, Any], source: str | Path) -> dict[str, Any]:
    """A state dict as the modules of a run have it, whatever form extensions keep in files."""
    state = dict(state)
    try:
        for extension in extensions.registered():
            extension.read(state)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error
    return state


def write_tensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Path:
    """Write a safetensors file; it appears at once and complete, or not at all.

    The same tensors and metadata give the same bytes.

    Raises:
        OutputError: the disk refuses it.
    """
    from safetensors.torch import save

    with whole_file(path) as partial:
        # `save_file` has a temporary file of its own, which would stay where the process is killed
        partial.write_bytes(save(tensors, metadata))
        _sort_metadata(partial)
    return Path(path)


def _sort_metadata(file: Path) -> None:
    """Write the metadata of a safetensors file in the order of their names.

    The library writes them in another order each time (findings/safetensors_bytes_differ.sh).
    """
    with file.open("r+b") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        header = json.loads(opened.read(length))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:  # spaces fill up a header, by the format's own rule
            opened.seek(8)
            opened.write(text.ljust(length))


def existing_file(path: Path) -> Path:
    """Return `path` if it is a file.

    Raises:
        CheckpointError: it is a folder or does not exist; names what is near.
    """
    if path.is_dir():
        inside = sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES)
        hint = (
            f"Name the file, such as '{inside[-1]}'." if inside else "There is no .ckpt file in it."
        )
        raise CheckpointError(f"{path} is a folder, not a checkpoint. {hint}")
    if not path.exists():
        folder = next(p for p in path.absolute().parents if p.exists())
        names = {p.name for p in folder.iterdir() if p.suffix in SUFFIXES or p.is_dir()}
        typed = path.absolute().relative_to(folder).parts[0]
        near = did_you_mean(typed, names)
        if not near.startswith("Did"):
            near = f"The nearest folder that exists is '{folder}'."
        raise CheckpointError(f"{path}: there is no such checkpoint. {near}")
    return path


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        extensions.registered()  # they know formats of their own
        if (read := extensions.WEIGHT_FORMATS.get(metadata.get("format", ""))) is not None:
            return {"state_dict": read(path), "metadata": metadata}
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return {"state_dict": state, "metadata": metadata}


def _torch_load(path: Path) -> Any:
    import pickle

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        # safe although weights_only=False: this unpickler imports and calls nothing that is named
        # in the file, see restricted_pickle
        content = torch.load(
            path,
            map_location="cpu",
            weights_only=False,
            pickle_module=restricted_pickle.pickle_module,
        )
        return restricted_pickle.without_placeholders(content)


def _damage(path: Path, error: Exception) -> str:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(2)
    if size and start != b"PK" and path.suffix != ".safetensors":
        return (
            f"{path}: not a checkpoint of PyTorch ({size} bytes). "
            "Give a .ckpt, .pth, .pt or .safetensors file."
        )
    reason = str(error).split("\n")[0][:200]
    return (
        f"{path}: the file is truncated or damaged ({size} bytes; {reason}). "
        "Copy it again, or take the checkpoint before it."
    )


def encoder_state(checkpoint: Mapping[str, Any], encoder: Encoder = "online") -> dict[str, Tensor]:
    """An encoder's part of a checkpoint, by the encoder's own key names.

    Knows `backbone.` and `momentum_backbone.`, the older `encoder.` and `momentum_encoder.`, files
    that are an encoder's state dict by themselves, and the names that timm has changed.

    Args:
        checkpoint: what `read_checkpoint` returned.
        encoder: which of the two encoders of a momentum method.

    Raises:
        CheckpointError: no such encoder in the checkpoint.
    """
    if encoder not in PREFIXES:
        raise CheckpointError(f"encoder='{encoder}': {did_you_mean(encoder, PREFIXES)}")
    state = {
        key.removeprefix("module.").replace("_orig_mod.", ""): value
        for key, value in _unpacked(checkpoint["state_dict"], "checkpoint").items()
        if isinstance(value, Tensor)
    }
    for prefix in PREFIXES[encoder]:
        part = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        if part:
            return _current_names(part)
    if encoder == "momentum":
        raise CheckpointError(
            "The checkpoint has no momentum encoder (no key starts with 'momentum_backbone.'): "
            "its method trains without one. Use the online encoder."
        )
    if any(key.startswith(p) for key in state for p in ("projector.", "momentum_", "predictor.")):
        raise CheckpointError(
            "The checkpoint has heads but no encoder: no key starts with 'backbone.' or 'encoder.'"
        )
    return _current_names(state)


def _current_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of timm 1.0 for weights that were written with timm 0.4 to 0.6 (Swin)."""
    if not any(key.endswith("relative_position_bias_table") for key in state):
        return state
    constants = (".relative_position_index", ".attn_mask")
    state = {key: value for key, value in state.items() if not key.endswith(constants)}
    if not any(key.startswith("layers.0.downsample.") for key in state):
        return state
    # downsampling stood at the end of stage i, and stands at the beginning of stage i + 1
    renamed = {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[0] == "layers" and parts[2] == "downsample":
            parts[1] = str(int(parts[1]) + 1)
        renamed[".".join(parts)] = value
    return renamed
