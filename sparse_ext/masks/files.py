# SPDX-License-Identifier: MIT
"""Mask files: eight mask bits to a byte, in safetensors, with shapes and checksum as metadata."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from solo.checkpoints.files import write_tensors
from solo.errors import CheckpointError

FORMAT = "sparse_ext.masks/1"


def pack(mask: Tensor) -> Tensor:
    """Bits of a bool tensor in logical order, as uint8 on the CPU, zero-padded to whole bytes."""
    flat = mask.detach().reshape(-1).cpu().numpy()
    return torch.from_numpy(np.packbits(flat, bitorder="little"))


def unpack(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Inverse of `pack`: a contiguous bool tensor of `shape`."""
    bits = np.unpackbits(packed.numpy(), count=math.prod(shape), bitorder="little")
    return torch.from_numpy(bits.view(np.bool_)).reshape(shape)


def write(path: str | Path, masks: Mapping[str, Tensor], checksum: int) -> None:
    """Write `masks` to `path`, eight bits to a byte."""
    shapes = {name: list(mask.shape) for name, mask in masks.items()}
    metadata = {"format": FORMAT, "shapes": json.dumps(shapes), "checksum": str(checksum)}
    write_tensors(path, {name: pack(mask) for name, mask in masks.items()}, metadata)


def read(path: str | Path) -> tuple[dict[str, Tensor], int]:
    """The masks in their original order, and the checksum that was stored with them.

    Raises:
        CheckpointError: if the file is missing, damaged or not a mask file.
    """
    packed, metadata = read_tensors(path, FORMAT, "Mask files are written by MaskSet.save.")
    try:
        shapes = json.loads(metadata["shapes"])
        masks = {name: unpack(packed[name], tuple(shape)) for name, shape in shapes.items()}
        return masks, int(metadata["checksum"])
    except (KeyError, ValueError, RuntimeError) as error:
        raise damaged(path, str(error)) from error


def read_tensors(
    path: str | Path, expected: str, hint: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file whose metadata name the format `expected`.

    Raises:
        CheckpointError: if it is missing, damaged or of another format; `hint` says what writes
            such files.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise CheckpointError(f"{path}: there is no such file.")
    try:
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise damaged(path, str(error)) from error
    if metadata.get("format") != expected:
        found = metadata.get("format")
        raise CheckpointError(f"{path}: format {found!r} instead of {expected!r}. {hint}")
    return tensors, metadata


def damaged(path: str | Path, why: str) -> CheckpointError:
    """The error for a mask file that cannot be trusted."""
    return CheckpointError(f"{path}: the file is damaged ({why}); write it again.")
