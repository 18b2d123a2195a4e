# SPDX-License-Identifier: MIT
"""Compressed sparse rows: pruned weights as (outputs, everything else) matrices.

For libraries that multiply such matrices (torch.sparse, scipy, oneMKL). With an index of four bytes
per value it takes more room than a packed file.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sparse_ext import maskfile
from sparse_ext.export.strip import masked_weights, strip

FORMAT = "sparse_ext.csr/1"
_PARTS = (":rows", ":columns", ":values")


def save_csr(state: Mapping[str, Tensor], path: str | Path) -> None:
    """Write a masked state dict with CSR in the place of every masked weight.

    Kept weights that happen to be zero are stored too: the pattern is the mask's.

    Raises:
        CheckpointError: if the state dict has no masks, or one does not fit its weight.
    """
    masks, dense = masked_weights(state), strip(state)
    tensors = {k: t.detach().cpu().contiguous().clone() for k, t in dense.items() if k not in masks}
    for key, mask in masks.items():
        kept = mask.cpu().flatten(1)
        rows = torch.zeros(len(kept) + 1, dtype=torch.int32)
        rows[1:] = kept.sum(1).cumsum(0)
        columns = kept.nonzero()[:, 1].int()
        values = dense[key].detach().cpu().flatten(1)[kept]
        for part, tensor in zip(_PARTS, (rows, columns, values), strict=True):
            tensors[key + part] = tensor
    shapes = {key: list(mask.shape) for key, mask in masks.items()}
    metadata = {"format": FORMAT, "shapes": json.dumps(shapes), "order": json.dumps(list(dense))}
    maskfile.write_atomically(path, tensors, metadata)


def load_csr(path: str | Path, dense: bool = False) -> dict[str, Tensor]:
    """Read what `save_csr` wrote.

    Args:
        path: the file.
        dense: give masked weights as ordinary tensors, for a plain model to load; otherwise as
            `torch.sparse_csr` matrices of shape (outputs, everything else).

    Raises:
        CheckpointError: if the file is missing, damaged or not such a file.
    """
    tensors, metadata = maskfile.read_tensors(path, FORMAT, "CSR files: `save_csr`.")
    try:
        shapes = json.loads(metadata["shapes"])
        state = {}
        for key in json.loads(metadata["order"]):
            if key not in shapes:
                state[key] = tensors[key]
                continue
            shape = shapes[key]
            rows, columns, values = (tensors[key + part] for part in _PARTS)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
                size = shape[0], math.prod(shape[1:])
                matrix = torch.sparse_csr_tensor(rows, columns, values, size, check_invariants=True)
            state[key] = matrix.to_dense().reshape(shape) if dense else matrix
        return state
    except (KeyError, ValueError, RuntimeError) as error:
        raise maskfile.damaged(path, str(error)) from error
