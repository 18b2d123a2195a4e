# SPDX-License-Identifier: MIT
"""Which indices of which tensors go together: atoms, their equality, and products of them.

Every index of a dimension that could lose entries is an *atom*. Operations say that atoms are the
same (an addition: both operands lose the same channels), or that one is the disjunction of others
(a linear layer whose outputs are viewed as heads x dimensions: row (h, d) goes if head h or
dimension d goes). `solve` turns those statements into units that can go by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Ids = NDArray[np.int64]
Dim = Ids | None  # (indices, k): an index goes if any of its k atoms does (-1: none); None: never


@dataclass
class Atoms:
    """Statements about atoms, collected while a recording is read.

    Attributes:
        kinds: per atom, 0 for an index of a tensor, 1 + axis for one of an axis of a view.
        reasons: why atoms never go, each said of an array of them.
    """

    kinds: list[Ids] = field(default_factory=list)
    count: int = 0
    equal: list[tuple[Ids, Ids]] = field(default_factory=list)
    products: list[tuple[Ids, Ids]] = field(default_factory=list)
    reasons: list[tuple[Ids, str]] = field(default_factory=list)

    def fresh(self, n: int, kind: int = 0) -> Dim:
        """Atoms for a dimension of n indices; a single index is no choice."""
        if n < 2:
            return None
        ids = np.arange(self.count, self.count + n, dtype=np.int64)[:, None]
        self.count += n
        self.kinds.append(np.full(n, kind, dtype=np.int64))
        return ids

    def fix(self, dim: Dim, why: str) -> None:
        """None of these atoms ever goes."""
        if dim is not None:
            atoms = np.unique(dim[dim >= 0])
            if atoms.size:
                self.reasons.append((atoms, why))

    def tie(self, a: Dim, b: Dim, why: str) -> Dim:
        """Both dimensions lose the same indices; `why` one of them might lose none."""
        if a is None or b is None:
            self.fix(b if a is None else a, why)
            return None
        if a.shape[1] > b.shape[1]:
            a, b = b, a
        if a.shape[0] != b.shape[0] or (a.shape[1] not in (1, b.shape[1])):
            self.fix(a, why)
            self.fix(b, why)
        elif a.shape[1] == b.shape[1]:
            both = (a >= 0) & (b >= 0)
            if (~both & ((a >= 0) | (b >= 0))).any():
                self.fix(a[~both], why)
                self.fix(b[~both], why)
            if not np.array_equal(a, b):
                self.equal.append((a[both], b[both]))
        else:
            self.products.append((a[:, 0], b))
        return b

    def solve(self) -> Solution:
        """The components, what they are made of, and why some never go."""
        size = max(1, self.count)
        label = np.arange(size)
        extra: list[tuple[Ids, Ids]] = []
        while True:
            label = _components(size, self.equal + extra)
            rows, clash, more = _definitions(label, self.products)
            if not more:
                break
            extra += more
        names: dict[int, str] = {}
        for atoms, why in [*self.reasons, *((c, "is viewed in two ways") for c in clash)]:
            for component in np.unique(label[atoms] if why != "is viewed in two ways" else atoms):
                names.setdefault(int(component), why)
        kinds = np.zeros(size, dtype=np.int64)
        np.maximum.at(kinds, label[: self.count], np.concatenate([*self.kinds, np.zeros(0, int)]))
        first = np.full(size, size, dtype=np.int64)
        np.minimum.at(first, label, np.arange(size))
        solution = Solution(label, kinds, first, rows, names)
        solution.spread()
        return solution


class Solution(NamedTuple):
    """Which atoms are the same, which are made of others, and which never go.

    Attributes:
        label: component of each atom.
        kinds: largest kind of a component's atoms.
        first: its first atom.
        made_of: components that one is the disjunction of.
        fixed: why a component never goes.
    """

    label: Ids
    kinds: Ids
    first: Ids
    made_of: dict[int, tuple[int, ...]]
    fixed: dict[int, str]

    def spread(self) -> None:
        """What a component that never goes is made of never goes, and vice versa."""
        waiting = [c for c in self.fixed if c in self.made_of]
        while waiting:
            component = waiting.pop()
            for part in self.made_of[component]:
                if part not in self.fixed:
                    self.fixed[part] = self.fixed[component]
                    if part in self.made_of:
                        waiting.append(part)

    def conditions(self, dim: Dim) -> Ids:
        """Components (indices, k) whose going lets an index go; -1 where none is."""
        if dim is None:
            return np.zeros((0, 0), dtype=np.int64)
        found = np.where(dim >= 0, self.label[dim], -1)
        for _ in range(8):
            made = [c for c in np.unique(found) if c in self.made_of]
            if not made:
                break
            width = max(len(self.made_of[c]) for c in made)
            wide = np.full((*found.shape, width), -1, dtype=np.int64)
            wide[:, :, 0] = found
            table = {c: (*self.made_of[c], *[-1] * (width - len(self.made_of[c]))) for c in made}
            keys = np.array(sorted(table))
            parts = np.array([table[c] for c in keys])
            where = np.searchsorted(keys, found).clip(max=len(keys) - 1)
            hit = keys[where] == found
            wide[hit] = parts[where[hit]]
            found = wide.reshape(found.shape[0], -1)
        if self.fixed:
            found = np.where(np.isin(found, np.fromiter(self.fixed, int)), -1, found)
        used = (found >= 0).any(0)
        return found[:, used]


def _components(size: int, pairs: list[tuple[Ids, Ids]]) -> Ids:
    if not pairs:
        return np.arange(size)
    a = np.concatenate([p[0].ravel() for p in pairs])
    b = np.concatenate([p[1].ravel() for p in pairs])
    graph = coo_array((np.ones(a.size, dtype=bool), (a, b)), shape=(size, size))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def _definitions(
    label: Ids, products: list[tuple[Ids, Ids]]
) -> tuple[dict[int, tuple[int, ...]], list[Ids], list[tuple[Ids, Ids]]]:
    """One product per component; equalities that two of them imply; components where they clash."""
    made: dict[int, tuple[int, ...]] = {}
    atoms: dict[int, tuple[int, ...]] = {}
    clash: list[Ids] = []
    more: list[tuple[Ids, Ids]] = []
    for defined, parts in products:
        owners, components = label[defined], np.where(parts >= 0, label[parts], -1)
        for owner, row, ids in zip(
            owners.tolist(), components.tolist(), parts.tolist(), strict=True
        ):
            known = [c for c in row if c >= 0]
            if owner in known or not known:
                continue
            old = made.get(owner)
            if old is None:
                made[owner], atoms[owner] = tuple(row), tuple(ids)
            elif len(old) != len(row) or any(
                (x < 0) != (y < 0) for x, y in zip(old, row, strict=True)
            ):
                clash.append(np.array([owner, *known, *(c for c in old if c >= 0)]))
            elif old != tuple(row):
                pairs = [(x, y) for x, y in zip(atoms[owner], ids, strict=True) if x >= 0]
                more.append((np.array([x for x, _ in pairs]), np.array([y for _, y in pairs])))
    return {c: tuple(p for p in row if p >= 0) for c, row in made.items()}, clash, more
