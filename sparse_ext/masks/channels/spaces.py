# SPDX-License-Identifier: MIT
"""Spaces of channels: those that exist together or not at all, with their layers and a name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from sparse_ext.compat import ConvNd
from sparse_ext.masks.channels.atoms import Ids
from sparse_ext.masks.channels.rules_base import GROUP, POSITION

KINDS = {0: "", 2: ":dim", 3: ":head", POSITION: ":position", GROUP: ":group"}


@dataclass(eq=False)
class Space:
    """Channels that exist together or not at all, and others of the same kind.

    Attributes:
        name: the layer that first writes them, with what they are where they are no plain channels.
        units: numbers of the units, in the order of that layer's outputs.
        producers: layers whose outputs they are.
        consumers: layers that read them, and how many columns each has per channel.
        norms: norms over them.
        others: parameters of no layer and norm that have an entry for each.
        fixed: why none of them can go; empty if they can.
        rough: whether they pass through what does not keep constants: attention, layer norms,
            products, grouped convolutions. Such a channel can go only if all its parameters are
            zero.
    """

    name: str
    units: Ids
    producers: list[str] = field(default_factory=list)
    consumers: dict[str, int] = field(default_factory=dict)
    norms: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    fixed: str = ""
    rough: bool = False

    @property
    def size(self) -> int:
        """Number of channels that the space has."""
        return len(self.units)


def describe(
    space: Space,
    members: Iterable[tuple[str, int, int]],
    modules: Mapping[str, nn.Module],
    norms: set[str | None],
    order: Mapping[str, int],
) -> None:
    """Fill in the layers, norms and other parameters of a space.

    Args:
        space: without them.
        members: parameters with an axis over its channels: name, axis and its length.
        modules: of the network, by name.
        norms: names of parameters of norms.
        order: place of modules in the network's computation.
    """
    rows: list[str] = []
    for name, axis, n in members:
        layer, _, leaf = name.rpartition(".")
        module = modules.get(layer)
        if name in norms:
            if layer not in space.norms:
                space.norms.append(layer)
        elif leaf == "weight" and isinstance(module, (nn.Linear, ConvNd)):
            if axis == 0:
                rows.append(layer)
            elif axis == 1:
                space.consumers[layer] = max(1, n // max(1, space.size))
        elif not (leaf == "bias" and isinstance(module, (nn.Linear, nn.Conv2d))):
            space.others.append(name)
    space.producers = sorted(dict.fromkeys(rows), key=lambda r: order.get(r, len(order)))


def name_spaces(spaces: Sequence[Space], kind_of: Callable[[int], int]) -> None:
    """Name spaces by the layer that first writes them, with what they are where that is not enough.

    Args:
        spaces: described.
        kind_of: kind of a unit.
    """
    taken: dict[str, int] = {}
    for space in spaces:
        base = space.producers[0] if space.producers else next(iter(space.others), "input")
        kind = 0 if space.fixed else kind_of(int(space.units[0]))
        several = [s for s in spaces if s.producers[:1] == [base] and not s.fixed]
        name = base + (KINDS.get(kind, ":axis") if len(several) > 1 else "")
        taken[name] = taken.get(name, 0) + 1
        space.name = name if taken[name] == 1 else f"{name}:{taken[name]}"
