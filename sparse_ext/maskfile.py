# SPDX-License-Identifier: MIT
"""Mask files: eight mask bits to a byte, in safetensors, with shapes and checksum as metadata."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

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
    """Write `masks` to `path`; the file appears at once and complete, or not at all."""
    from safetensors.torch import save_file

    shapes = {name: list(mask.shape) for name, mask in masks.items()}
    metadata = {"format": FORMAT, "shapes": json.dumps(shapes), "checksum": str(checksum)}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    save_file({name: pack(mask) for name, mask in masks.items()}, unfinished, metadata)
    unfinished.replace(path)


def read(path: str | Path) -> tuple[dict[str, Tensor], int]:
    """The masks in their original order, and the checksum that was stored with them.

    Raises:
        CheckpointError: if the file is missing, damaged or not a mask file.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise CheckpointError(f"{path}: there is no such mask file.")
    try:
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
            packed = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise damaged(path, str(error)) from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: not a mask file (format {metadata.get('format')!r}, expected {FORMAT!r}). "
            "Mask files are written by MaskSet.save."
        )
    try:
        shapes = json.loads(metadata["shapes"])
        masks = {name: unpack(packed[name], tuple(shape)) for name, shape in shapes.items()}
        return masks, int(metadata["checksum"])
    except (KeyError, ValueError, RuntimeError) as error:
        raise damaged(path, str(error)) from error


def damaged(path: str | Path, why: str) -> CheckpointError:
    """The error for a mask file that cannot be trusted."""
    return CheckpointError(f"{path}: the mask file is damaged ({why}); write it again.")
