# SPDX-License-Identifier: MIT
"""What each ATen operation says about the dimensions of its tensors.

A rule takes the dimensions of the operands, states which atoms are the same, and returns the
dimensions of the results. An operation without a rule fixes whatever reaches it: it is named as the
reason, and the rest of the network stays free.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from sparse_ext.masks.channels.atoms import Atoms, Dim
from sparse_ext.masks.channels.norms import correctable
from sparse_ext.masks.channels.recording import Op, Recording, Ref

Dims = tuple[Dim, ...]
VIEWS = {
    *("view", "_unsafe_view", "_reshape_alias", "reshape", "unsqueeze", "squeeze", "flatten"),
    *("unflatten",),
}
SAME = {"clone", "alias", "detach", "lift_fresh", "_to_copy", "contiguous", "zero"}
UNTAGGED = {"hardswish", "hardsigmoid", "hardtanh", "relu6", "elu", "softplus", "mish", "celu", "selu"}
POOLS = {
    *("max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_max_pool2d"),
    *("upsample_bilinear2d", "upsample_nearest2d", "upsample_bicubic2d", "_upsample_nearest_exact2d"),
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


class Reading:
    """The dimensions of all tensors of a recording.

    Args:
        recording: a complete one.
        skipped: operations whose dimensions are not to be followed, and why.
        halves: splits whose parts are to lose the same indices.
        widths: views of heads x dimensions whose size is the width of their module's input.
        modules: of the network, by name.

    Attributes:
        dims: per tensor.
        zero: per tensor and axis, whether an index is zero once all parameters of its unit are.
        known: tensors that do not depend on the input.
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
        modules: Mapping[str, nn.Module],
    ) -> None:
        self.recording, self.atoms = recording, Atoms()
        self.skipped, self.halves, self.widths = skipped, halves, widths
        self.modules = modules
        self.dims: dict[int, Dims] = {}
        self.zero: dict[int, tuple[bool, ...]] = {}
        self.known: set[int] = set()
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

    # -- access ---------------------------------------------------------------------------------

    def shape(self, ref: Any) -> tuple[int, ...]:
        """Of a tensor."""
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
        flat = torch.utils._pytree.tree_flatten((op.args, op.kwargs), lambda x: isinstance(x, Ref))
        return [x for x in flat[0] if isinstance(x, Ref)]

    def where(self, op: Op) -> str:
        """An operation as a user knows it."""
        return f"passes through {op.name}() in {op.module or 'the network'}"

    # -- one operation --------------------------------------------------------------------------

    def _read(self, op: Op) -> None:
        refs = self.refs(op)
        for ref in refs:
            self.of(ref)
        if refs and all(ref.number in self.known for ref in refs):
            self.known.update(n for n in op.outs if n >= 0)
        elif not refs:
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
        if len(flows) > 1 and op.name not in ("add", "sub") or len(flows) < len(refs) and flows:
            for dim in dims:
                self._roughen(dim)
        wide = [[z[a] and s[a] > 1 for z, s in zip(zeros, shapes, strict=True)] for a in range(rank)]
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

    # -- views ----------------------------------------------------------------------------------

    def _view(self, op: Op, x: Ref, *args: Any) -> list:
        old, new = self.shape(x), self.recording.shapes[op.outs[0]]
        dims: list[Dim] = []
        zero: list[bool] = []
        for source, target in groups_of(old, new):
            parts = [self.of(x)[i] for i in source]
            known = [self.z(x)[i] for i, p in zip(source, parts, strict=True) if p is not None]
            sizes = [new[i] for i in target]
            merged = _merge([old[i] for i in source], parts)
            split = self._as_axes(merged, sizes)
            dims += split
            zero += [bool(known) and all(known)] * len(sizes)
        if self.index in self.widths:
            self._tie_width(op, dims)
        return [(dims, zero)]

    def _tie_width(self, op: Op, dims: list[Dim]) -> None:
        """The product of heads and dimensions is as wide as what its module reads."""
        calls = self.recording.calls.get(op.module, [])
        read = [c for c in calls if c[0] <= self.index]
        for number in read[-1][1] if read else ():
            for dim in self.dims.get(number, ()):
                if dim is None:
                    continue
                for mine in _products(dims):
                    if mine.shape[0] == dim.shape[0]:
                        self.atoms.tie(dim, mine, self.where(op))
                        return

    def _as_axes(self, dim: Dim, sizes: list[int]) -> list[Dim]:
        """One dimension as several; what cannot be told apart along them becomes a product."""
        if dim is None or len(sizes) == 1:
            return [dim] if len(sizes) == 1 else [None] * len(sizes)
        found: list[list[np.ndarray]] = [[] for _ in sizes]
        grid = dim.reshape(*sizes, dim.shape[1])
        for k in range(dim.shape[1]):
            column = grid[..., k]
            varies = [
                axis
                for axis, n in enumerate(sizes)
                if n > 1 and (column != np.take(column, [0], axis)).any()
            ]
            rest = tuple(0 if a not in varies else slice(None) for a in range(len(sizes)))
            inner = column[rest]
            if len(varies) == 1:
                found[varies[0]].append(inner)
            elif len(varies) > 1:
                axes = [self.atoms.fresh(sizes[a], 1 + len(sizes) - a) for a in varies]
                self._product(inner, [a for a in axes if a is not None])
                for axis, fresh in zip(varies, axes, strict=True):
                    found[axis].append(fresh[:, 0])  # type: ignore[index]
            elif (inner >= 0).any():
                self.atoms.fix(column.reshape(-1, 1), "is all of a dimension")
        return [np.stack(f, 1) if f else None for f in found]

    def _product(self, atoms: np.ndarray, axes: list[np.ndarray]) -> None:
        grids = np.meshgrid(*(a[:, 0] for a in axes), indexing="ij")
        parts = np.stack([g.ravel() for g in grids], 1)
        one = atoms.ravel()[:, None]
        self._roughen(one)
        for axis in axes:
            self._roughen(axis)
        if (one < 0).any():
            self.atoms.fix(one, "is viewed in parts")
            self.atoms.fix(parts, "is viewed in parts")
        else:
            self.atoms.products.append((one[:, 0], parts))

    def _permute(self, op: Op, x: Ref, order: list[int]) -> list:
        order = [o % len(order) for o in order]
        return [(tuple(self.of(x)[o] for o in order), tuple(self.z(x)[o] for o in order))]

    def _transpose(self, op: Op, x: Ref, a: int, b: int) -> list:
        order = list(range(len(self.shape(x))))
        order[a], order[b] = order[b], order[a]
        return self._permute(op, x, order)

    def _t(self, op: Op, x: Ref) -> list:
        return self._permute(op, x, list(range(len(self.shape(x))))[::-1])

    def _expand(self, op: Op, x: Ref, size: list[int], **kwargs: Any) -> list:
        new = self.recording.shapes[op.outs[0]]
        more = len(new) - len(self.shape(x))
        old, dims = (1,) * more + self.shape(x), (None,) * more + self.of(x)
        zero = (False,) * more + self.z(x)
        wide = [
            d if o == n else self.atoms.fresh(n) for d, o, n in zip(dims, old, new, strict=True)
        ]
        return [(wide, zero)]

    # -- parts ----------------------------------------------------------------------------------

    def _slice(
        self, op: Op, x: Ref, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
    ) -> list:
        return [self._take(x, dim, slice(start, end, step))]

    def _take(self, x: Ref, axis: int, index: Any) -> tuple[Dims, tuple[bool, ...]]:
        dims, axis = list(self.of(x)), axis % len(self.shape(x))
        found = dims[axis]
        dims[axis] = None if found is None else found[index]
        if dims[axis] is not None and dims[axis].shape[0] < 2:  # type: ignore[union-attr]
            self.atoms.fix(dims[axis], "is taken out alone")
            dims[axis] = None
        return tuple(dims), self.z(x)

    def _select(self, op: Op, x: Ref, dim: int, index: int) -> list:
        axis = dim % len(self.shape(x))
        self.atoms.fix(self.of(x)[axis], self.where(op))
        rest = [i for i in range(len(self.shape(x))) if i != axis]
        return [([self.of(x)[i] for i in rest], [self.z(x)[i] for i in rest])]

    def _unbind(self, op: Op, x: Ref, dim: int = 0) -> list:
        return self._select(op, x, dim, 0) * len(op.outs)

    def _split_op(self, op: Op, x: Ref, sizes: list[int], dim: int) -> list:
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        parts = [
            self._take(x, dim, slice(a, a + n)) for a, n in zip(starts, sizes, strict=True)
        ]
        if self.index in self.halves:
            for part in parts[1:]:
                self.atoms.tie(parts[0][0][dim], part[0][dim], self.where(op))
        return parts

    def _split_with_sizes(self, op: Op, x: Ref, sizes: list[int], dim: int = 0) -> list:
        return self._split_op(op, x, list(sizes), dim)

    def _split(self, op: Op, x: Ref, size: int, dim: int = 0) -> list:
        return self._chunk(op, x, len(op.outs), dim)

    def _chunk(self, op: Op, x: Ref, chunks: int, dim: int = 0) -> list:
        return self._split_op(op, x, [self.recording.shapes[o][dim] for o in op.outs], dim)

    def _cat(self, op: Op, tensors: list[Ref], dim: int = 0) -> list:
        tensors = [t for t in tensors if math.prod(self.shape(t))]
        rank = len(self.shape(tensors[0]))
        axis, why = dim % rank, self.where(op)
        dims: list[Dim] = []
        for a in range(rank):
            parts = [self.of(t)[a] for t in tensors]
            if a != axis:
                one = parts[0]
                for part in parts[1:]:
                    one = self.atoms.tie(one, part, why)
            elif all(p is None for p in parts):
                one = None
            else:
                width = max(p.shape[1] for p in parts if p is not None)
                one = np.concatenate(
                    [_widen(p, self.shape(t)[a], width) for p, t in zip(parts, tensors, strict=True)]
                )
            dims.append(one)
        return [(dims, [all(self.z(t)[a] for t in tensors) for a in range(rank)])]

    def _stack(self, op: Op, tensors: list[Ref], dim: int = 0) -> list:
        out = self._cat(op, tensors, 0)  # ties all but the first dimension
        rank = len(self.shape(tensors[0]))
        first: Dim = self.of(tensors[0])[0]
        for t in tensors[1:]:
            first = self.atoms.tie(first, self.of(t)[0], self.where(op))
        dims, zero = [first, *out[0][0][1:]], list(out[0][1])
        axis = dim % (rank + 1)
        dims.insert(axis, None)
        zero.insert(axis, False)
        return [(dims, zero)]

    def _roll(self, op: Op, x: Ref, shifts: list[int], dims: list[int] = ()) -> list:  # type: ignore
        for axis in dims or range(len(self.shape(x))):
            self.atoms.fix(self.of(x)[axis], self.where(op))
        return self._cut_off(x, dims)

    def _flip(self, op: Op, x: Ref, dims: list[int]) -> list:
        return self._roll(op, x, [], dims)

    def _cut_off(self, x: Ref, axes: Any) -> list:
        gone = {a % len(self.shape(x)) for a in axes}
        kept = [None if a in gone else d for a, d in enumerate(self.of(x))]
        return [(kept, self.z(x))]

    def _constant_pad_nd(self, op: Op, x: Ref, pad: list[int], value: float = 0) -> list:
        rank = len(self.shape(x))
        axes = [rank - 1 - i // 2 for i, n in enumerate(pad) if n]
        for axis in axes:
            self.atoms.fix(self.of(x)[axis], self.where(op))
        return self._cut_off(x, axes)

    def _index(self, op: Op, x: Ref, indices: list[Any]) -> list:
        places = [i for i, index in enumerate(indices) if index is not None]
        if len(places) != 1:
            raise NotImplementedError
        (place,) = places
        self.atoms.fix(self.of(x)[place], self.where(op))
        dims, zero = list(self.of(x)), list(self.z(x))
        rank = len(self.shape(indices[place]))
        dims[place : place + 1], zero[place : place + 1] = [None] * rank, [False] * rank
        return [(dims, zero)]

    def _index_select(self, op: Op, x: Ref, dim: int, index: Ref) -> list:
        return self._index(op, x, [None] * dim + [index])

    def _repeat_interleave(self, op: Op, x: Ref, *args: Any) -> list:
        raise NotImplementedError

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
            if ref.number in self.known and other.number not in self.known:
                self.columns.append(self.of(ref)[at])
        if x.number not in self.known and w.number not in self.known:
            self.columns.append(self.of(x)[axis])
            self._roughen(self.of(x)[axis])
            if not (self.z(x)[axis] or self.z(w)[column]):
                self.atoms.fix(self.of(x)[axis], f"{why} without being zero where it is pruned")

    def _mm(self, op: Op, a: Ref, b: Ref) -> list:
        self._column(a, len(self.shape(a)) - 1, b, len(self.shape(b)) - 2, self.where(op))
        left, right = self.of(a), self.of(b)
        for ref, axis in ((b, len(right) - 1), (a, len(left) - 2)):
            other = a if ref is b else b
            if ref.number in self.known and other.number not in self.known:
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
        return [(tuple(dims), zero), *[((d,), (False,)) for d in ()]]

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
            grid = np.repeat(one, c // groups, 0)  # type: ignore[type-var]
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


def groups_of(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Dimensions of a view that become others, in the smallest groups of equal products."""
    found, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        a, b = ([i] if i < len(old) else []), ([j] if j < len(new) else [])
        i, j = i + len(a), j + len(b)
        left, right = math.prod(old[x] for x in a), math.prod(new[x] for x in b)
        while left != right or (not a) != (not b):
            if (left < right and i < len(old)) or (not a and i < len(old)):
                a.append(i)
                left, i = left * old[i], i + 1
            elif j < len(new):
                b.append(j)
                right, j = right * new[j], j + 1
            elif i < len(old):
                a.append(i)
                left, i = left * old[i], i + 1
            else:
                break
        found.append((a, b))
    return found


def _merge(sizes: list[int], dims: list[Dim]) -> Dim:
    """Several dimensions as one, the last the fastest."""
    columns = []
    for axis, dim in enumerate(dims):
        if dim is None:
            continue
        shape = [1] * len(sizes)
        shape[axis] = sizes[axis]
        for k in range(dim.shape[1]):
            wide = np.broadcast_to(dim[:, k].reshape(shape), sizes)
            columns.append(wide.reshape(-1))
    return np.stack(columns, 1) if columns else None


def _products(dims: list[Dim]) -> list[np.ndarray]:
    """Each two neighbours as one, and each dimension."""
    alone = [d for d in dims if d is not None]
    pairs = []
    for a, b in zip(dims, dims[1:], strict=False):
        if a is not None and b is not None:
            pairs.append(_merge([len(a), len(b)], [a, b]))
    return sorted(pairs + alone, key=lambda d: -d.shape[1])  # type: ignore[operator]


def _widen(dim: Dim, n: int, width: int) -> np.ndarray:
    if dim is None:
        return np.full((n, width), -1, dtype=np.int64)
    return np.pad(dim, ((0, 0), (0, width - dim.shape[1])), constant_values=-1)


def _keeps_zero(op: Op) -> bool:
    """Whether a function of one tensor is zero at zero."""
    args = [torch.zeros(1) if isinstance(a, Ref) else a for a in op.args]
    try:
        return bool(op.func(*args, **op.kwargs).abs().max() == 0)
    except Exception:  # of another signature: unknown
        return False
