# SPDX-License-Identifier: MIT
"""What the rules for ATen operations have in common: names, and how they see a recording."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from sparse_ext.compat import tree_leaves
from sparse_ext.masks.channels.atoms import Atoms, Dim
from sparse_ext.masks.channels.recording import Op, Recording, Ref

Dims = tuple[Dim, ...]
VIEWS = {
    *("view", "_unsafe_view", "_reshape_alias", "reshape", "unsqueeze", "squeeze", "flatten"),
    *("unflatten",),
}
SAME = {"clone", "alias", "detach", "lift_fresh", "_to_copy", "contiguous", "zero"}
UNTAGGED = {
    "hardswish",
    "hardsigmoid",
    "hardtanh",
    "relu6",
    "elu",
    "softplus",
    "mish",
    "celu",
    "selu",
}
POOLS = {
    *("max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_max_pool2d"),
    *(
        "upsample_bilinear2d",
        "upsample_nearest2d",
        "upsample_bicubic2d",
        "_upsample_nearest_exact2d",
    ),
}
ATTENTIONS = {
    *("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention"),
    *("_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention"),
    *("_scaled_dot_product_fused_attention_overrideable",),
}


POSITION, GROUP = 8, 9  # kinds of atoms; views have 1 + the number of axes that follow


class Product(NamedTuple):
    """A contraction of two tensors over one dimension of each: (number, axis) twice."""

    op: int
    left: tuple[int, int]
    right: tuple[int, int]


class Mix(NamedTuple):
    """A statistic over the channels of a tensor: exact only if those that go are zero."""

    op: int
    tensor: int
    axis: int


class RuleBase:
    """A recording, what is known of its tensors so far, and where they are in it."""

    recording: Recording
    atoms: Atoms
    modules: Mapping[str, nn.Module]
    halves: set[int]
    widths: set[int]
    dims: dict[int, Dims]
    zero: dict[int, tuple[bool, ...]]
    known: set[int]
    weights: set[int]
    products: list[Product]
    mixes: list[Mix]
    rows: list[Dim]
    columns: list[Dim]
    norms: list[int]
    rough: list[np.ndarray]
    index: int

    def shape(self, ref: Any) -> tuple[int, ...]:
        """Shape of a tensor of the recording."""
        return self.recording.shapes[ref.number]

    def of(self, ref: Any) -> Dims:
        """Dimensions of a tensor; of one that nobody made: none that could go."""
        none = (None,) * len(self.shape(ref))
        if ref.number not in self.dims and ref.number not in self.recording.inputs:
            self.known.add(ref.number)
        return self.dims.get(ref.number, none)

    def z(self, ref: Any) -> tuple[bool, ...]:
        """Whether its indices are zero with their unit."""
        return self.zero.get(ref.number, (False,) * len(self.shape(ref)))

    def refs(self, op: Op) -> list[Ref]:
        """Tensors that an operation takes."""
        flat = tree_leaves((op.args, op.kwargs), is_leaf=lambda x: isinstance(x, Ref))
        return [x for x in flat if isinstance(x, Ref)]

    def where(self, op: Op) -> str:
        """An operation as a user knows it."""
        return f"passes through {op.name}() in {op.module or 'the network'}"

    def _opaque(self, op: Op, why: str) -> None:
        for ref in self.refs(op):
            for dim in self.of(ref):
                self.atoms.fix(dim, why)
        for number in op.outs:
            if number >= 0:
                self.dims[number] = (None,) * len(self.recording.shapes[number])
                self.zero[number] = (False,) * len(self.recording.shapes[number])

    def _roughen(self, dim: Dim) -> None:
        if dim is not None:
            self.rough.append(dim[dim >= 0])
