# SPDX-License-Identifier: MIT
"""What each ATen operation says about the dimensions of its tensors.

A rule takes the dimensions of the operands, states which atoms are the same, and returns the
dimensions of the results. An operation without a rule fixes whatever reaches it: it is named as the
reason, and the rest of the network stays free.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from sparse_ext.masks.channels.atoms import Atoms, Dim
from sparse_ext.masks.channels.recording import Op, Recording, Ref
from sparse_ext.masks.channels.rules_base import (
    ATTENTIONS,
    POOLS,
    SAME,
    UNTAGGED,
    VIEWS,
    Dims,
    Mix,
    Product,
)
from sparse_ext.masks.channels.rules_layers import LayerRules
from sparse_ext.masks.channels.rules_shapes import ShapeRules


class Reading(ShapeRules, LayerRules):
    """The dimensions of all tensors of a recording.

    Args:
        recording: a complete one.
        skipped: operations whose dimensions are not to be followed, and why.
        halves: splits whose parts are to lose the same indices.
        widths: views of heads x dimensions whose size is the width of their module's input.
        scaled: products with a number that comes from the last dimension.
        modules: of the network, by name.

    Attributes:
        dims: per tensor.
        zero: per tensor and axis, whether an index is zero once all parameters of its unit are.
        known: tensors that do not depend on the input.
        weights: those of them that are the weight of a module.
        products, mixes: what reads channels, and what computes statistics over them.
        rows: dimensions of weights that are the outputs of a layer, in order of use.
        columns: dimensions of weights that read channels.
        norms: numbers of the parameters of norms.
        rough: atoms that pass through something that does not keep a constant constant.
    """

    def __init__(
        self,
        recording: Recording,
        skipped: dict[int, str],
        halves: set[int],
        widths: set[int],
        scaled: set[int],
        modules: Mapping[str, nn.Module],
    ) -> None:
        self.recording, self.atoms = recording, Atoms()
        self.skipped, self.halves, self.widths = skipped, halves, widths
        self.modules, self.scaled = modules, scaled
        self.dims: dict[int, Dims] = {}
        self.zero: dict[int, tuple[bool, ...]] = {}
        self.known: set[int] = set()
        self.weights = {n for n, name in recording.names.items() if name.endswith("weight")}
        self.products: list[Product] = []
        self.mixes: list[Mix] = []
        self.rows: list[Dim] = []
        self.columns: list[Dim] = []
        self.norms: list[int] = []
        self.rough: list[np.ndarray] = []
        self.index = -1
        for number in recording.names:
            shape = recording.shapes[number]
            self.dims[number] = tuple(self.atoms.fresh(n) for n in shape)
            self.zero[number] = tuple(d is not None for d in self.dims[number])
            self.known.add(number)
        for self.index, op in enumerate(recording.ops):
            self._read(op)
        for number in recording.outputs:
            for dim in self.dims.get(number, ()):
                self.atoms.fix(dim, "is what the network puts out")

    # -- one operation --------------------------------------------------------------------------

    def _read(self, op: Op) -> None:
        refs = self.refs(op)
        for ref in refs:
            self.of(ref)
        if all(ref.number in self.known for ref in refs):
            self.known.update(n for n in op.outs if n >= 0)
        if self.index in self.skipped:
            self._opaque(op, self.skipped[self.index])
            return
        rule = self._rule(op)
        if rule is None:
            self._opaque(op, self.where(op))
            return
        try:
            results = rule(op, *op.args, **op.kwargs)
        except (TypeError, ValueError, IndexError, AttributeError, NotImplementedError):
            self._opaque(op, self.where(op))
            return
        for number, (dims, zero) in zip(op.outs, results, strict=False):
            if number >= 0:
                shape = self.recording.shapes[number]
                if len(dims) != len(shape) or any(
                    d is not None and d.shape[0] != n for d, n in zip(dims, shape, strict=False)
                ):
                    self._opaque(op, self.where(op))
                    return
                self.dims[number], self.zero[number] = tuple(dims), tuple(zero)
                if self.index in self.scaled:
                    self.atoms.fix(dims[-1], f"{self.where(op)}, whose factor comes from the width")

    def _rule(self, op: Op) -> Callable | None:
        if op.name in VIEWS:
            return self._view
        if op.name in SAME:
            return self._same
        if op.name in POOLS:
            return self._pool
        if op.name in ATTENTIONS:
            return self._attention
        if "batch_norm" in op.name:
            return self._batch_norm
        named = getattr(self, f"_{op.name.strip('_')}", None)
        if named is not None:
            return named
        if op.name.startswith("new_") or op.name.endswith("_like"):
            return self._factory
        if torch.Tag.pointwise in op.func.tags or op.name in UNTAGGED:
            return self._pointwise
        return None

    # -- elementwise ----------------------------------------------------------------------------

    def _same(self, op: Op, x: Ref, *args: Any, **kwargs: Any) -> list:
        return [(self.of(x), self.z(x))] * len(op.outs)

    def _factory(self, op: Op, *args: Any, **kwargs: Any) -> list:
        return [(self.atoms_for(self.recording.shapes[op.outs[0]]), self._never(op))]

    def atoms_for(self, shape: tuple[int, ...]) -> Dims:
        """Dimensions that are as wide as whatever they meet."""
        return tuple(self.atoms.fresh(n) for n in shape)

    def _never(self, op: Op) -> tuple[bool, ...]:
        return (False,) * len(self.recording.shapes[op.outs[0]])

    def _as_strided(self, op: Op, x: Ref, size: list[int], *args: Any) -> list:
        if tuple(size) != self.shape(x):
            raise NotImplementedError
        return self._same(op, x)

    def _copy(self, op: Op, to: Ref, source: Ref, *args: Any) -> list:
        return self._pointwise(op, to, source)

    def _pointwise(self, op: Op, *args: Any, **kwargs: Any) -> list:
        refs = self.refs(op)
        rank = len(self.recording.shapes[op.outs[0]])
        padded = [((None,) * (rank - len(self.of(r))) + self.of(r)) for r in refs]
        shapes = [((1,) * (rank - len(self.shape(r))) + self.shape(r)) for r in refs]
        zeros = [((False,) * (rank - len(self.z(r))) + self.z(r)) for r in refs]
        why = f"{self.where(op)} together with a dimension of fixed size"
        dims: list[Dim] = []
        for axis in range(rank):
            full = [i for i in range(len(refs)) if shapes[i][axis] > 1]
            dim = padded[full[0]][axis] if full else None
            for i in full[1:]:
                dim = self.atoms.tie(dim, padded[i][axis], why)
            dims.append(dim)
        flows = [r for r in refs if r.number not in self.known]
        several = len(flows) > 1 and op.name not in ("add", "sub")
        if several or (flows and len(flows) < len(refs)):
            for dim in dims:
                self._roughen(dim)
        wide = [
            [z[a] and s[a] > 1 for z, s in zip(zeros, shapes, strict=True)] for a in range(rank)
        ]
        return [(tuple(dims), tuple(self._stays_zero(op, w) for w in wide))]

    def _stays_zero(self, op: Op, zero: list[bool]) -> bool:
        """Whether zeros among the operands make a zero."""
        if op.name in ("mul", "addcmul") or (op.name == "div" and zero):
            if op.name == "div":
                return zero[0]
            return any(zero) if op.name == "mul" else zero[0] and any(zero[1:])
        if not zero or not all(zero):
            return False
        if len(zero) > 1:
            return op.name in ("add", "sub", "maximum", "minimum")
        return _keeps_zero(op)

    def _native_dropout(self, op: Op, x: Ref, *args: Any) -> list:
        return self._same(op, x)

    def _bernoulli(self, op: Op, x: Ref, *args: Any, **kwargs: Any) -> list:
        return self._same(op, x)


def _keeps_zero(op: Op) -> bool:
    """Whether a function of one tensor is zero at zero."""
    args = [torch.zeros(1) if isinstance(a, Ref) else a for a in op.args]
    try:
        return bool(op.func(*args, **op.kwargs).abs().max() == 0)
    except Exception:  # of another signature: unknown
        return False
