# SPDX-License-Identifier: MIT
"""Packed files: kept values plus one bit per weight, in safetensors.

ResNet-18 at 90% sparsity takes 5.9 MB instead of 44.7 MB, in float16 3.7 MB. Packing is for storage
only; no kernel computes on it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from solo.errors import CheckpointError
from sparse_ext import maskfile
from sparse_ext.export.strip import masked_weights, strip

FORMAT = "sparse_ext.packed/1"
_BITS = ":bits"


def save_packed(state: Mapping[str, Tensor], path: str | Path, half: bool = False) -> None:
    """Write a masked state dict without the buffers that only training needs.

    The file appears at once and complete, or not at all.

    Args:
        state: of a module with masked layers.
        path: file to write.
        half: store floating-point values in float16; the round trip is exact for values that
            are float16 already.

    Raises:
        CheckpointError: if the state dict has no masks, or one does not fit its weight.
    """
    masks, dense = masked_weights(state), strip(state)
    tensors = {key: _stored(t, half) for key, t in dense.items()}
    for key, mask in masks.items():
        flat, kept = tensors[key].flatten(), mask.cpu().reshape(-1)
        tensors[key], tensors[key + _BITS] = flat[kept], maskfile.pack(mask)
    shapes = {key: list(mask.shape) for key, mask in masks.items()}
    metadata = {"format": FORMAT, "shapes": json.dumps(shapes), "order": json.dumps(list(dense))}
    maskfile.write_atomically(path, tensors, metadata)


def _stored(tensor: Tensor, half: bool) -> Tensor:
    tensor = tensor.detach().cpu().contiguous().clone()
    return tensor.half() if half and tensor.is_floating_point() else tensor


def load_packed(path: str | Path, masks: bool = True) -> dict[str, Tensor]:
    """Read what `save_packed` wrote, on the CPU.

    Args:
        path: the file.
        masks: include the `mask` buffers; without them a dense model loads the result strictly.

    Raises:
        CheckpointError: if the file is missing, damaged or not a packed one.
    """
    tensors, metadata = maskfile.read_tensors(path, FORMAT, "Packed files: `save_packed`.")
    try:
        shapes = json.loads(metadata["shapes"])
        state = {}
        for key in json.loads(metadata["order"]):
            state[key] = tensors[key]
            if key not in shapes:
                continue
            mask = maskfile.unpack(tensors[key + _BITS], tuple(shapes[key]))
            if masks:
                state[f"{key.removesuffix('weight')}mask"] = mask
            dense = torch.zeros(mask.shape, dtype=tensors[key].dtype)
            state[key] = dense.masked_scatter_(mask, _exactly(tensors[key], mask))
        return state
    except (KeyError, ValueError, RuntimeError) as error:
        raise maskfile.damaged(path, str(error)) from error


def _exactly(values: Tensor, mask: Tensor) -> Tensor:
    """`values` if there is one per kept position (masked_scatter_ accepts too many)."""
    kept = int(mask.count_nonzero())
    if values.numel() != kept:
        raise CheckpointError(f"{values.numel()} values for {kept} kept weights")
    return values
