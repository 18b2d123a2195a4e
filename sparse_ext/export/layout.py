# SPDX-License-Identifier: MIT
"""What packed and CSR files have in common: masked weights in some coding, the rest as it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from solo.checkpoints.files import write_tensors
from solo.errors import CheckpointError
from sparse_ext.export.strip import masked_weights, strip
from sparse_ext.masks import files as maskfile

Parts = dict[str, Tensor]  # what a coding makes of one tensor, by the suffix of its key


def save(
    state: Mapping[str, Tensor],
    path: str | Path,
    form: str,
    plain: Callable[[Tensor], Tensor],
    encode: Callable[[Tensor, Tensor], Parts],
    about: Mapping[str, str] | None = None,
) -> None:
    """Write the network that evaluation sees; the file appears at once and complete, or not at all.

    Args:
        state: of an encoder with masked layers.
        path: file to write.
        form: the file's format, for `load`.
        plain: what is stored of a tensor.
        encode: the same of a weight and its mask, both on the CPU.
        about: more metadata, see `solo.checkpoints.described`.

    Raises:
        CheckpointError: if evaluation sees no masks, or one does not fit its weight.
    """
    dense, masks = strip(state), masked_weights(state)
    if not masks:
        raise CheckpointError(
            "Evaluation sees the dense network of this state dict, not its masks: export it dense."
        )
    tensors: Parts = {}
    for key, tensor in dense.items():
        stored = plain(tensor.detach().cpu().contiguous().clone())
        parts = encode(stored, masks[key].cpu()) if key in masks else {"": stored}
        tensors |= {key + part: value for part, value in parts.items()}
    shapes = {key: list(mask.shape) for key, mask in masks.items()}
    metadata = {"format": form, "shapes": json.dumps(shapes), "order": json.dumps(list(dense))}
    write_tensors(path, tensors, {**(about or {}), **metadata})


def load(
    path: str | Path,
    form: str,
    hint: str,
    decode: Callable[[str, Parts, tuple[int, ...]], Parts],
) -> dict[str, Tensor]:
    """Read what `save` wrote, in the order of the network.

    Args:
        path: the file.
        form: its format.
        hint: what writes such files.
        decode: from a masked weight's key, its parts by suffix and its shape to tensors by key.

    Raises:
        CheckpointError: if the file is missing, damaged or of another format.
    """
    tensors, metadata = maskfile.read_tensors(path, form, hint)
    try:
        shapes = json.loads(metadata["shapes"])
        state: dict[str, Tensor] = {}
        for key in json.loads(metadata["order"]):
            if key in shapes:
                parts = {k.removeprefix(key): v for k, v in tensors.items() if k.startswith(key)}
                state |= decode(key, parts, tuple(shapes[key]))
            else:
                state[key] = tensors[key]
        return state
    except (KeyError, ValueError, RuntimeError) as error:
        raise maskfile.damaged(path, str(error)) from error
