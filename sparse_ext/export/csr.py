# SPDX-License-Identifier: MIT
"""Compressed sparse rows: pruned weights as (outputs, everything else) matrices.

For libraries that multiply such matrices (torch.sparse, scipy, oneMKL). With an index of four bytes
per value it takes more room than a packed file.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sparse_ext.export import layout

FORMAT = "sparse_ext.csr/1"
_PARTS = (":rows", ":columns", ":values")


def save_csr(
    state: Mapping[str, Tensor], path: str | Path, about: Mapping[str, str] | None = None
) -> None:
    """Write the network that evaluation sees, with CSR in the place of every masked weight.

    Kept weights that happen to be zero are stored too: the pattern is the mask's.

    Args:
        state: of an encoder with masked layers.
        path: file to write.
        about: more metadata, see `solo.checkpoints.described`.

    Raises:
        CheckpointError: see `sparse_ext.export.layout.save`.
    """
    layout.save(state, path, FORMAT, lambda tensor: tensor, _encode, about)


def load_csr(path: str | Path, dense: bool = False) -> dict[str, Tensor]:
    """Read a file of compressed sparse rows that `save_csr` wrote.

    Args:
        path: the file.
        dense: give masked weights as ordinary tensors, for a plain model to load; otherwise as
            `torch.sparse_csr` matrices of shape (outputs, everything else).

    Raises:
        CheckpointError: if the file is missing, damaged or not such a file.
    """

    def decode(key, parts, shape):
        matrix = _matrix(parts, shape)
        return {key: matrix.to_dense().reshape(shape) if dense else matrix}

    return layout.load(path, FORMAT, "CSR files: `save_csr`.", decode)


def load_dense(path: str | Path) -> dict[str, Tensor]:
    """Read what `save_csr` wrote as ordinary tensors; see `load_csr`."""
    return load_csr(path, dense=True)


def _encode(weight: Tensor, mask: Tensor) -> layout.Parts:
    kept = mask.flatten(1)
    rows = torch.zeros(len(kept) + 1, dtype=torch.int32)
    rows[1:] = kept.sum(1).cumsum(0)
    parts = rows, kept.nonzero()[:, 1].int(), weight.flatten(1)[kept]
    return dict(zip(_PARTS, parts, strict=True))


def _matrix(parts: layout.Parts, shape: tuple[int, ...]) -> Tensor:
    rows, columns, values = (parts[name] for name in _PARTS)
    size = shape[0], math.prod(shape[1:])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
        return torch.sparse_csr_tensor(rows, columns, values, size, check_invariants=True)
