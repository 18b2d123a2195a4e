# SPDX-License-Identifier: MIT
"""Rules for layers, attention, norms and statistics."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparse_ext.masks.channels.atoms import Dim
from sparse_ext.masks.channels.norms import correctable
from sparse_ext.masks.channels.recording import Op, Ref
from sparse_ext.masks.channels.rules_base import GROUP, POSITION, Mix, Product, RuleBase


class LayerRules(RuleBase):
    """What reads channels, what writes them, and what computes statistics over them."""

    # -- layers ---------------------------------------------------------------------------------

    def _convolution(
        self, op: Op, x: Ref, w: Ref, b: Ref | None, stride: Any, padding: Any, dilation: Any,
        transposed: bool, output_padding: Any, groups: int,
    ) -> list:  # fmt: skip
        if transposed:
            raise NotImplementedError
        data, weight = self.of(x), self.of(w)
        why = self.where(op)
        for dim in (*data[2:], *weight[2:]):
            self.atoms.fix(dim, why)
        if groups == 1:
            self._column(x, 1, w, 1, why)
            out = weight[0]
        else:
            out = self._grouped(x, w, groups, why)
        self._row(w, b, why)
        rest = [None] * (len(data) - 2)
        return [((data[0], out, *rest), (False, True, *[False] * len(rest)))]

    def _grouped(self, x: Ref, w: Ref, groups: int, why: str) -> Dim:
        """Inputs are (group, position) and outputs (group, output); groups and positions may go."""
        data, weight = self.of(x)[1], self.of(w)
        inside, outside = self.shape(w)[1], self.shape(w)[0] // groups
        self._roughen(data)
        if inside == outside == 1:
            self.columns.append(weight[0])
            return self.atoms.tie(weight[0], data, why)
        one = self.atoms.fresh(groups, GROUP)
        for dim, n, tied in ((data, inside, weight[1]), (weight[0], outside, None)):
            if dim is None or one is None:
                self.atoms.fix(one, why)
                self.atoms.fix(tied, why)
                continue
            part = self.atoms.fresh(n, POSITION)
            if tied is not None:
                part = self.atoms.tie(part, tied, why)
            grid = np.repeat(one, n, 0)
            if part is not None:
                grid = np.concatenate([grid, np.tile(part, (groups, 1))], 1)
            self._roughen(grid)
            self.atoms.tie(dim, grid, why)
        self.columns.append(weight[1])
        self.columns.append(weight[0])
        return weight[0]

    def _row(self, w: Ref, b: Ref | None, why: str) -> None:
        weight = self.of(w)
        self.rows.append(weight[0])
        if b is not None:
            self.atoms.tie(weight[0], self.of(b)[0], why)

    def _column(self, x: Ref, axis: int, w: Ref, column: int, why: str) -> None:
        self.atoms.tie(self.of(x)[axis], self.of(w)[column], why)
        self.products.append(Product(self.index, (x.number, axis), (w.number, column)))
        for ref, other, at in ((w, x, column), (x, w, axis)):
            if self._is_weight(ref, other):
                self.columns.append(self.of(ref)[at])
        if x.number not in self.known and w.number not in self.known:
            self.columns.append(self.of(x)[axis])
            self._roughen(self.of(x)[axis])
            if not (self.z(x)[axis] or self.z(w)[column]):
                self.atoms.fix(self.of(x)[axis], f"{why} without being zero where it is pruned")

    def _is_weight(self, ref: Ref, other: Ref) -> bool:
        """Whether one operand is a layer's weight and the other what the layer reads."""
        if ref.number in self.known and other.number not in self.known:
            return True
        return ref.number in self.weights and other.number not in self.weights

    def _mm(self, op: Op, a: Ref, b: Ref) -> list:
        self._column(a, len(self.shape(a)) - 1, b, len(self.shape(b)) - 2, self.where(op))
        left, right = self.of(a), self.of(b)
        for ref, axis in ((b, len(right) - 1), (a, len(left) - 2)):
            other = a if ref is b else b
            if self._is_weight(ref, other):
                self.rows.append(self.of(ref)[axis])
        fixed_left = a.number in self.known or self.z(a)[-2]
        fixed_right = b.number in self.known or self.z(b)[-1]
        return [((*left[:-2], left[-2], right[-1]), (*self.z(a)[:-2], fixed_left, fixed_right))]

    def _addmm(self, op: Op, bias: Ref, a: Ref, b: Ref, **kwargs: Any) -> list:
        ((dims, zero),) = self._mm(op, a, b)
        self.atoms.tie(dims[-1], self.of(bias)[-1], self.where(op)) if self.of(bias) else None
        return [(dims, (*(False for _ in zero[:-1]), zero[-1]))]

    def _bmm(self, op: Op, a: Ref, b: Ref) -> list:
        ((dims, zero),) = self._mm(op, a, b)
        batch = [
            self.atoms.tie(x, y, self.where(op))
            for x, y in zip(self.of(a)[:-2], self.of(b)[:-2], strict=True)
        ]
        either = [x or y for x, y in zip(self.z(a)[:-2], self.z(b)[:-2], strict=True)]
        for dim in batch:
            self._roughen(dim)
        return [((*batch, *dims[-2:]), (*either, *zero[-2:]))]

    def _attention(self, op: Op, q: Ref, k: Ref, v: Ref, *args: Any, **kwargs: Any) -> list:
        why = self.where(op)
        if kwargs.get("scale") is None:
            self.atoms.fix(self.of(q)[3], f"{why}, whose scale is that of the dimensions")
        self._column(q, 3, k, 3, why)
        heads = self.atoms.tie(self.of(q)[1], self.of(k)[1], why)
        heads = self.atoms.tie(heads, self.of(v)[1], why)
        for ref in self.refs(op)[3:]:
            shape = self.shape(ref)
            if len(shape) == 4 and shape[1] > 1:
                heads = self.atoms.tie(heads, self.of(ref)[1], why)
        self._roughen(heads)
        self._roughen(self.of(v)[3])
        zero = (False, self.z(v)[1], False, self.z(v)[3])
        empty = (None,) * len(self.recording.shapes[op.outs[1]]) if len(op.outs) > 1 else ()
        return [((self.of(v)[0], heads, None, self.of(v)[3]), zero), (empty, [False] * len(empty))]

    # -- norms and statistics ---------------------------------------------------------------------

    def _batch_norm(self, op: Op, x: Ref, *args: Any, **kwargs: Any) -> list:
        dims, why = list(self.of(x)), self.where(op)
        for ref in [r for r in args[:4] if isinstance(r, Ref)]:
            dims[1] = self.atoms.tie(dims[1], self.of(ref)[0], why)
            self.norms.append(ref.number)
        for axis in (0, *range(2, len(dims))):
            self.atoms.fix(dims[axis], why)
        affine = isinstance(args[0], Ref)
        zero = (False, affine, *[False] * (len(dims) - 2))
        return [(tuple(dims), zero)]

    def _native_layer_norm(
        self, op: Op, x: Ref, shape: list[int], w: Ref | None, b: Ref | None, eps: float
    ) -> list:
        dims, why = list(self.of(x)), self.where(op)
        if len(shape) > 1:
            for dim in dims[-len(shape) :]:
                self.atoms.fix(dim, why)
        for ref in (w, b):
            if ref is not None:
                dims[-1] = self.atoms.tie(dims[-1], self.of(ref)[-1], why)
                self.norms.append(ref.number)
        self._mix(op, x, len(dims) - 1)
        zero = (*self.z(x)[:-1], w is not None and self.z(x)[-1])
        flat = [((*dims[:-1], None), (False,) * len(dims))] * 2
        return [(tuple(dims), tuple([False] * (len(dims) - 1)) + zero[-1:]), *flat]

    def _native_group_norm(
        self, op: Op, x: Ref, w: Ref | None, b: Ref | None, n: int, c: int, hw: int, groups: int,
        eps: float,
    ) -> list:  # fmt: skip
        dims, why = list(self.of(x)), self.where(op)
        for ref in (w, b):
            if ref is not None:
                dims[1] = self.atoms.tie(dims[1], self.of(ref)[0], why)
                self.norms.append(ref.number)
        if groups == 1:
            self._mix(op, x, 1)
        elif dims[1] is not None and groups < c:
            one = self.atoms.fresh(groups, GROUP)
            grid = np.repeat(one, c // groups, 0)  # type: ignore[arg-type]
            self._roughen(grid)
            self.atoms.tie(dims[1], grid, why)
        zero = [False] * len(dims)
        zero[1] = w is not None
        stats = [((None, None), (False, False))] * 2
        return [(tuple(dims), tuple(zero)), *stats]

    def _mix(self, op: Op, x: Ref, axis: int) -> None:
        dim = self.of(x)[axis]
        if dim is None:
            return
        self._roughen(dim)
        if op.name != "linalg_vector_norm" and not self._corrected(op):
            self.atoms.fix(dim, self.where(op))
        elif self.z(x)[axis]:
            self.mixes.append(Mix(self.index, x.number, axis))
        else:
            why = f"is not zero where it is pruned, and {op.name}() in {op.module} averages over it"
            self.atoms.fix(dim, why)

    def _reduce(self, op: Op, x: Ref, axes: Any, keep: bool, exact: bool) -> list:
        rank = len(self.shape(x))
        gone = {a % rank for a in (range(rank) if axes in (None, []) else axes)}
        for axis in gone:
            if exact:
                self._mix(op, x, axis)
            else:
                self.atoms.fix(self.of(x)[axis], self.where(op))
        left = [a for a in range(rank) if keep or a not in gone]
        dims = [None if a in gone else self.of(x)[a] for a in left]
        return [(dims, [a not in gone and self.z(x)[a] for a in left])]

    def _mean(self, op: Op, x: Ref, dim: Any = None, keepdim: bool = False, **kw: Any) -> list:
        return self._reduce(op, x, dim, keepdim, self._corrected(op) == "response")

    def _sum(self, op: Op, x: Ref, dim: Any = None, keepdim: bool = False, **kw: Any) -> list:
        return self._reduce(op, x, dim, keepdim, self._corrected(op) == "response")

    def _corrected(self, op: Op) -> str:
        return correctable(self.modules.get(op.module))

    def _amax(self, op: Op, x: Ref, dim: Any = None, keepdim: bool = False) -> list:
        return self._reduce(op, x, dim, keepdim, False)

    def _linalg_vector_norm(
        self, op: Op, x: Ref, ord: Any = 2, dim: Any = None, keepdim: bool = False, **kw: Any
    ) -> list:
        return self._reduce(op, x, dim, keepdim, True)

    def _safe_softmax(self, op: Op, x: Ref, dim: int, *args: Any) -> list:
        return self._softmax(op, x, dim)

    def _softmax(self, op: Op, x: Ref, dim: int, *args: Any) -> list:
        self.atoms.fix(self.of(x)[dim], self.where(op))
        return [(self.of(x), (False,) * len(self.shape(x)))]

    def _pool(self, op: Op, x: Ref, *args: Any, **kwargs: Any) -> list:
        dims = self.of(x)
        for dim in dims[-2:]:
            self.atoms.fix(dim, self.where(op))
        return [((*dims[:-2], None, None), self.z(x))] * len(op.outs)
