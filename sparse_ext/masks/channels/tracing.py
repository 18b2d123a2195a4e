# SPDX-License-Identifier: MIT
"""Which channels of a network exist together, found by following its tensors.

The channels of a tensor are written by one layer, pass through norms and activations, and are read
by others. Tensors that are added share their channels (a residual stream), so those are one
*space*: a channel of it can only go from all its writers and readers at once. Attention has a space
of heads and one of the dimensions of each head; grouped convolutions one of groups and one of the
positions in a group. Whatever does something unknown to a tensor fixes the space it belongs to.

What is found is tried: the network is recorded again with some units of every space removed, and
each tensor must have the shape that was foretold. An operation where it has not is dealt with: the
parts of a split lose the same indices, heads x dimensions are as wide as the stream, or its
channels are fixed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from sparse_ext.masks.channels import attention, widths
from sparse_ext.masks.channels.atoms import Dim, Ids, Solution
from sparse_ext.masks.channels.recording import Recording, Untraceable, record, record_any
from sparse_ext.masks.channels.rules import Reading
from sparse_ext.masks.channels.rules_base import VIEWS
from sparse_ext.masks.channels.spaces import Space, describe, name_spaces
from sparse_ext.masks.channels.trials import first_difference, twins

TRIES = 40  # operations that are dealt with before a network counts as untraceable


class Channels:
    """The channel spaces of one network, found by tracing it.

    Args:
        net: any module; it is not changed.

    Attributes:
        spaces: those with a writer, in the order of their first one.
        units: how many units there are in all.
        conditions: per parameter and buffer, and per axis: the units (indices, k) any of whose
            going lets an index go, -1 where none is.
        why: reason why outputs of a layer never go, by its name.
        untraced: parts that could not be followed, and why.
    """

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.spaces: list[Space] = []
        self.conditions: dict[str, list[Ids]] = {}
        self.why: dict[str, str] = {}
        self.untraced: dict[str, str] = {}
        self.units = 0
        self._skipped: dict[int, str] = {}
        self._halves: set[int] = set()
        self._widths: set[int] = set()
        self._scaled: set[int] = set()
        with attention.adapted(net):
            self._follow(net)

    def _follow(self, net: nn.Module) -> None:
        try:
            self.recording, self.input_shape = record_any(net)
        except Untraceable as error:
            self.untraced[type(net).__name__] = str(error)
            self.recording = Recording()
            return
        self._find()
        for _ in range(TRIES):
            failed = next((k for k in map(self._try, range(2)) if k is not None), None)
            if failed is None:
                return
            self.deal_with(failed)
        self.untraced[type(net).__name__] = "its tensors do not have the shapes that were foretold"
        self._skipped = dict.fromkeys(range(len(self.recording.ops)), "cannot be followed")
        self._find()

    # -- what there is --------------------------------------------------------------------------

    def _find(self) -> None:
        recording = self.recording
        modules = dict(self.net.named_modules())
        self.reading = Reading(
            recording, self._skipped, self._halves, self._widths, self._scaled, modules
        )
        self.solution = self.reading.atoms.solve()
        by_length: dict[int, list[tuple[int, Any]]] = {}
        for component, parts in sorted(self.solution.made_of.items()):
            by_length.setdefault(len(parts), []).append((component, list(parts)))
        self._definitions = [
            (np.array([c for c, _ in some]), np.array([parts for _, parts in some]))
            for some in by_length.values()
        ]
        self.spaces, self.why = [], {}
        label, fixed = self.solution.label, self.solution.fixed
        written = self._roots(self.reading.rows)
        read = set(self._roots(self.reading.columns))
        rough = set(self._roots([a.reshape(-1, 1) for a in self.reading.rough]))
        keys = self._signatures(set(written))
        groups: dict[Any, list[int]] = {}
        for component in written:
            groups.setdefault(keys.get(component, component), []).append(component)
        self._unit_of = np.full(len(label) + 1, -1, dtype=np.int64)
        self.units = 0
        for components in groups.values():
            components.sort(key=lambda c: self.solution.first[c])
            reasons = [fixed.get(c) for c in components if c in fixed]
            free = [c for c in components if c not in fixed and c in read]
            if free:
                space = Space("", np.arange(self.units, self.units + len(free)))
                space.rough = bool(rough & set(free)) or self.solution.kinds[free[0]] > 0
                self._unit_of[free] = space.units
                self.units += len(free)
                self.spaces.append(space)
            left = [c for c in components if c in fixed or c not in read]
            if left:
                why = reasons[0] if reasons else "nothing reads it"
                self.spaces.append(Space("", np.asarray(left), fixed=why or "is fixed"))
        self._describe()

    def _roots(self, dims: Iterable[Dim]) -> list[int]:
        """Components without a definition that stand behind these dimensions, in order."""
        found: dict[int, None] = {}
        made = self.solution.made_of
        for dim in dims:
            if dim is None:
                continue
            flat = self.solution.label[dim[dim >= 0]]
            for component in dict.fromkeys(flat.tolist()):
                stack = [component]
                while stack:
                    c = stack.pop()
                    if c in made:
                        stack += reversed(made[c])
                    else:
                        found.setdefault(c)
        return list(found)

    def _signatures(self, components: set[int]) -> dict[int, Any]:
        """What the components of one space have in common: where they occur, and as what."""
        generator = np.random.default_rng(0)
        total = np.zeros(len(self.solution.label), dtype=np.uint64)
        for number in self.recording.names:
            for dim in self.reading.dims[number]:
                if dim is None:
                    continue
                found = np.asarray(self._roots_of(dim))
                if found.size:
                    total[found] += generator.integers(1, 2**62, dtype=np.uint64)
        kinds = self.solution.kinds
        fixed = self.solution.fixed
        return {c: (int(total[c]), int(kinds[c]), c in fixed) for c in components}

    def _roots_of(self, dim: Dim) -> Ids:
        """As `_roots`, of one dimension, without order."""
        assert_free = self._expanded(dim)
        return np.unique(assert_free[assert_free >= 0])

    def _expanded(self, dim: Dim) -> Ids:
        key = id(dim)
        cache = self.reading.__dict__.setdefault("expanded", {})
        if key not in cache:
            bare = Solution(*self.solution[:4], {})
            cache[key] = bare.conditions(dim)
        return cache[key]

    def _describe(self) -> None:
        """Units per parameter, and the layers of each space."""
        recording = self.recording
        modules = dict(self.net.named_modules())
        norms = {recording.names.get(n) for n in self.reading.norms}
        self.conditions = {}
        members: dict[int, list[tuple[str, int, int]]] = {}
        space_of = np.full(self.units + 1, -1, dtype=np.int64)
        for i, space in enumerate(self.spaces):
            if not space.fixed:
                space_of[space.units] = i
        fixed_at = {
            int(c): i for i, space in enumerate(self.spaces) if space.fixed for c in space.units
        }
        for number, name in recording.names.items():
            columns = []
            for axis, dim in enumerate(self.reading.dims[number]):
                if dim is None:
                    columns.append(np.zeros((0, 0), dtype=np.int64))
                    continue
                roots = self._expanded(dim)
                found = np.where(roots >= 0, self._unit_of[roots], -1)
                columns.append(found[:, (found >= 0).any(0)] if found.size else found)
                for component in np.unique(roots[roots >= 0]).tolist():
                    if component in fixed_at:
                        members.setdefault(fixed_at[component], []).append((name, axis, len(dim)))
                for i in np.unique(space_of[found[found >= 0]]).tolist():
                    members.setdefault(i, []).append((name, axis, len(dim)))
            self.conditions[name] = columns
        order = {op.module: i for i, op in reversed(list(enumerate(recording.ops)))}
        for i, space in enumerate(self.spaces):
            describe(space, dict.fromkeys(members.get(i, [])), modules, norms, order)
            for row in space.producers if space.fixed else ():
                self.why.setdefault(row, space.fixed)
        name_spaces(self.spaces, self._kind)

    def _kind(self, unit: int) -> int:
        return int(self.solution.kinds[np.flatnonzero(self._unit_of == unit)[0]])

    # -- what would be --------------------------------------------------------------------------

    def gone(self, units: np.ndarray) -> np.ndarray:
        """Which atoms go with these units (bool per unit); the last entry is of no atom."""
        solution = self.solution
        size = len(solution.label)
        components = np.zeros(size, dtype=bool)
        free = np.flatnonzero(self._unit_of[:size] >= 0)
        components[free] = units[self._unit_of[free]]
        before = -1
        while before != (before := int(components.sum())):
            for made, parts in self._definitions:
                components[made] |= components[parts].any(1)
        return np.append(components[solution.label], False)

    def keep(self, units: np.ndarray) -> dict[str, list[np.ndarray | None]]:
        """Per parameter and axis: the indices that stay, None where all do.

        Args:
            units: bool per unit, whether it goes.
        """
        wide = np.append(units, False)
        found: dict[str, list[np.ndarray | None]] = {}
        for name, columns in self.conditions.items():
            going = [wide[c].any(1) if c.size else np.zeros(0, dtype=bool) for c in columns]
            found[name] = [np.flatnonzero(~g) if g.any() else None for g in going]
        return found

    def shapes(self, units: np.ndarray) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters and buffers without those units."""
        return {
            name: tuple(
                n if index is None else len(index)
                for n, index in zip(self._shape(name), kept, strict=True)
            )
            for name, kept in self.keep(units).items()
        }

    def _shape(self, name: str) -> tuple[int, ...]:
        if not hasattr(self, "_shapes"):
            self._shapes = {n: self.recording.shapes[i] for i, n in self.recording.names.items()}
        return self._shapes[name]

    def foretold(self, number: int, gone: np.ndarray) -> tuple[int, ...]:
        """Shape of a tensor of the recording without what goes."""
        shape = self.recording.shapes[number]
        dims = self.reading.dims.get(number, (None,) * len(shape))
        return tuple(
            n if dim is None else int((~gone[dim].any(1)).sum())
            for n, dim in zip(shape, dims, strict=True)
        )

    def attributes(self, units: np.ndarray) -> dict[str, dict[str, Any]]:
        """Attributes of modules that have to change with those units, by module and name."""
        return widths.attributes(self, units)

    def readers(self, space: Space) -> list[tuple[int, str, Ids]]:
        """Who reads a space: number of the operation, layer, and the unit of each column."""
        found = []
        for product in self.reading.products:
            name = self._weight_of(product.right[0])
            if not name.endswith("weight"):
                continue
            units = self.conditions[name][1]
            if units.size and np.isin(units[:, 0], space.units).any():
                found.append((product.op, name.rpartition(".")[0], units[:, 0]))
        return found

    def _weight_of(self, number: int) -> str:
        """Name of the parameter that a tensor is, possibly transposed."""
        if not hasattr(self, "_made"):
            plain = ("t", "detach", "alias")
            ops = [op for op in self.recording.ops if op.name in plain]
            self._made = {op.outs[0]: op.args[0].number for op in ops}
        while number in self._made:
            number = self._made[number]
        return self.recording.names.get(number, "")

    # -- trying it ------------------------------------------------------------------------------

    def _try(self, seed: int) -> int | None:
        """The first operation whose results have other shapes than foretold, if one has."""
        generator = np.random.default_rng(seed)
        units = np.zeros(self.units, dtype=bool)
        for space in self.spaces:
            if not space.fixed and space.size > 1:
                most = 1 if seed == 0 else max(1, space.size // 2)
                n = int(generator.integers(1, most + 1))
                units[generator.choice(space.units, n, replace=False)] = True
        return self.check(units)

    def check(self, units: np.ndarray) -> int | None:
        """As `_try`, of given units."""
        gone, changes = self.gone(units), self.attributes(units)
        with attention.adapted(self.net), widths.changed(self.net, changes):
            again = record(self.net, self.input_shape, self.shapes(units))
        dims = self.reading.dims
        return first_difference(self.recording, again, dims, lambda n: self.foretold(n, gone))

    def deal_with(self, k: int) -> None:
        """What an operation needs, also where it stands in other modules of its class."""
        op = self.recording.ops[k]
        for twin in twins(self.recording.ops, k, dict(self.net.named_modules())):
            if op.name in ("split", "split_with_sizes", "chunk") and twin not in self._halves:
                self._halves.add(twin)
            elif op.name in ("mul", "div") and twin not in self._scaled:
                self._scaled.add(twin)
            elif op.name in (*VIEWS, "expand") and twin not in self._widths:
                self._widths.add(twin)
            else:
                self._skipped[twin] = self.reading.where(self.recording.ops[twin])
        self._find()


def random_units(channels: Channels, share: float, seed: int = 0) -> torch.Tensor:
    """That share of the units of every space that can lose some: bool per unit, True goes."""
    generator = torch.Generator().manual_seed(seed)
    units = torch.zeros(channels.units, dtype=torch.bool)
    for space in channels.spaces:
        if not space.fixed and space.size > 1:
            n = min(space.size - 1, round(share * space.size))
            order = torch.randperm(space.size, generator=generator)[:n]
            units[torch.as_tensor(space.units)[order]] = True
    return units
