# SPDX-License-Identifier: MIT
"""Rules for views, permutations, parts and joins of tensors."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from sparse_ext.masks.channels.atoms import Dim
from sparse_ext.masks.channels.recording import Op, Ref
from sparse_ext.masks.channels.rules_base import Dims, RuleBase


class ShapeRules(RuleBase):
    """What happens to dimensions where nothing is computed."""

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
        if x.number in self.weights:
            self.weights.add(op.outs[0])
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
        parts = [self._take(x, dim, slice(a, a + n)) for a, n in zip(starts, sizes, strict=True)]
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
                    [
                        _widen(p, self.shape(t)[a], width)
                        for p, t in zip(parts, tensors, strict=True)
                    ]
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
    pairs: list[np.ndarray] = []
    for a, b in itertools.pairwise(dims):
        if a is not None and b is not None:
            both = _merge([len(a), len(b)], [a, b])
            pairs += [] if both is None else [both]
    return sorted(pairs + alone, key=lambda d: -d.shape[1])


def _widen(dim: Dim, n: int, width: int) -> np.ndarray:
    if dim is None:
        return np.full((n, width), -1, dtype=np.int64)
    return np.pad(dim, ((0, 0), (0, width - dim.shape[1])), constant_values=-1)
