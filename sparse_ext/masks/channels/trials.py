# SPDX-License-Identifier: MIT
"""Two recordings of a network, one with units removed: where it is not what was foretold."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence

from torch import nn

from sparse_ext.masks.channels.recording import Op, Recording
from sparse_ext.masks.channels.rules_base import SAME, VIEWS


def first_difference(
    full: Recording,
    cut: Recording,
    known: Container[int],
    foretold: Callable[[int], tuple[int, ...]],
) -> int | None:
    """The first operation of the full recording whose results have other shapes than foretold.

    Args:
        full: of the whole network.
        cut: without some units.
        known: numbers of the full recording's tensors whose shapes are foretold.
        foretold: shape of such a tensor without those units.
    """
    old = [(k, op) for k, op in enumerate(full.ops) if op.name not in SAME]
    new = [op for op in cut.ops if op.name not in SAME]
    for (k, op), other in zip(old, new, strict=False):
        if op.name != other.name and not (op.name in VIEWS and other.name in VIEWS):
            return k
        if _numbers(op) != _numbers(other):
            return k
        for number, its in zip(op.outs, other.outs, strict=False):
            told = number >= 0 and number in known
            if told and (its < 0 or foretold(number) != cut.shapes[its]):
                return k
    return old[len(new)][0] if len(new) < len(old) else None


def _numbers(op: Op) -> list[float]:
    """Scalars that a product has for a factor: they might come from a width."""
    return [a for a in op.args if isinstance(a, float)] if op.name in ("mul", "div") else []


def twins(ops: Sequence[Op], k: int, modules: Mapping[str, nn.Module]) -> list[int]:
    """Operations that stand in modules of one class at the place that operation `k` has in its."""
    op = ops[k]
    kind, nth = type(modules.get(op.module)), sum(o.module == op.module for o in ops[:k])
    found, counts = [], dict[str, int]()
    for i, other in enumerate(ops):
        place = counts.get(other.module, 0)
        counts[other.module] = place + 1
        if type(modules.get(other.module)) is kind and place == nth and other.name == op.name:
            found.append(i)
    return found or [k]
