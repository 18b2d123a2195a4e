# SPDX-License-Identifier: MIT
"""Channels that carry one value for every image and position, and what that value is.

A channel whose weights are all zero is not gone: batch norm makes a constant of it, an activation
another one, and the next layer reads that. In eval mode the constant is
gamma (0 - running_mean) / sqrt(running_var + eps) + beta, in train mode it is beta, because a
constant channel has no variance in any batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sparse_ext.masks.channels.recording import Op, Ref
from sparse_ext.masks.channels.rules_base import POOLS, SAME, UNTAGGED, VIEWS
from sparse_ext.masks.channels.rules_shapes import groups_of
from sparse_ext.masks.channels.tracing import Channels
from sparse_ext.masks.masked_layers import Masked

AGREE = 1e-6  # relative difference of the two modes' values that counts as none


class Value(NamedTuple):
    """A tensor that is constant but along one axis: float64 on the CPU, NaN where it varies."""

    axis: int
    along: Tensor


def used(layer: Any, train: bool) -> Tensor:
    """Which inputs an output reads: bool (outputs, columns).

    A weight that is zero reads nothing; while training continues only its mask promises that it
    stays zero.
    """
    weight = layer.weight.detach()
    if not train:
        alive = weight != 0
    elif isinstance(layer, Masked):
        alive = layer.mask
    else:
        alive = torch.ones_like(weight, dtype=torch.bool)
    return alive.reshape(*alive.shape[:2], -1).any(2)


def inputs(channels: Channels, net: nn.Module, train: bool = False) -> dict[int, Tensor]:
    """What the layers of `net` read: the value of each input column, NaN where it varies.

    Args:
        channels: of a network with the same modules.
        net: the network whose weights count.
        train: in train mode, and as long as training goes on; a channel is then constant only
            where eval mode sees the same value.

    Returns:
        float64 on the CPU, one entry per column, by the number of the reading operation.
    """
    values = _Values(channels, net, train, statistics=not train).read
    if not train:
        return values
    later = _Values(channels, net, train, statistics=True).read
    for key, value in values.items():
        off = (value - later[key]).abs() > AGREE * (1 + value.abs())
        values[key] = value.masked_fill(off | later[key].isnan(), torch.nan)
    return values


class _Values:
    """One pass over the recording, in one mode; `statistics`: batch norms use their running ones.

    Attributes:
        read: what each operation with a weight reads.
    """

    @torch.no_grad()
    def __init__(self, channels: Channels, net: nn.Module, train: bool, statistics: bool) -> None:
        self.net, self.train, self.statistics = net, train, statistics
        self.recording, self.names = channels.recording, channels.recording.names
        self.modules = dict(net.named_modules())
        self.values: dict[int, Value] = {}
        self.read: dict[int, Tensor] = {}
        drops = self._drops()
        for index, op in enumerate(self.recording.ops):
            for number in drops.get(index, ()):
                if number in self.values:
                    axis, along = self.values[number]
                    self.values[number] = Value(axis, along.masked_fill(along != 0, torch.nan))
            value = self._one(index, op)
            if value is not None and op.outs and op.outs[0] >= 0:
                for number, one in zip(op.outs, value, strict=False):
                    if one is not None and number >= 0:
                        self.values[number] = one

    def _drops(self) -> dict[int, list[int]]:
        """Tensors that dropout or random depth change in train mode, by the next operation."""
        found: dict[int, list[int]] = {}
        if self.statistics:
            return found
        for name, calls in self.recording.calls.items():
            module = self.modules.get(name)
            kind = type(module).__name__
            rate = getattr(module, "p", getattr(module, "drop_prob", 1.0))
            if ("Drop" in kind or kind == "StochasticDepth") and rate:
                for position, tensors in calls:
                    found.setdefault(position, []).extend(tensors[:1])
        return found

    def _layer(self, ref: Any) -> Any:
        """The module whose weight a tensor is, possibly transposed."""
        name = self.names.get(self._origin(ref.number), "")
        module = self.modules.get(name.rpartition(".")[0])
        return module if name.endswith(".weight") or name == "weight" else None

    def _origin(self, number: int) -> int:
        if not hasattr(self, "_made"):
            self._made = {
                op.outs[0]: op.args[0].number
                for op in self.recording.ops
                if op.name in ("t", "detach", "alias") and op.outs
            }
        while number in self._made:
            number = self._made[number]
        return number

    def _one(self, index: int, op: Op) -> list[Value | None] | None:
        refs = [a for a in op.args if isinstance(a, Ref)]
        if op.name in ("convolution", "addmm", "mm"):
            return self._product(index, op)
        if op.name == "cat":
            return [self._cat(*op.args, **op.kwargs)]
        known = [self.values.get(r.number) for r in refs]
        if not known or known[0] is None:
            return None
        if "batch_norm" in op.name:
            return [self._norm(known[0], op)]
        if op.name in ("add", "mul") and len(refs) == 2:
            return [self._two(op, known[0], known[1])]
        if op.name in SAME:
            return [known[0]]
        handler: Callable | None = getattr(self, f"_{op.name.strip('_')}", None)
        if op.name in VIEWS:
            handler = self._view
        if op.name in POOLS:
            return [self._pool(known[0], op)] * len(op.outs)
        if handler is not None:
            return handler(known[0], op)
        if len(refs) == 1 and len(op.outs) == 1 and _elementwise(op):
            args = [known[0].along.clone() if isinstance(a, Ref) else a for a in op.args]
            return [Value(known[0].axis, op.func(*args, **op.kwargs))]
        return None

    def _product(self, index: int, op: Op) -> list[Value | None] | None:
        x, w = (op.args[1], op.args[2]) if op.name == "addmm" else op.args[:2]
        layer, value = self._layer(w), self.values.get(x.number)
        shape = self.recording.shapes[x.number]
        axis = 1 if op.name == "convolution" else len(shape) - 1
        if layer is None or layer.weight.ndim not in (2, 4):
            return None
        known = torch.full((shape[axis],), torch.nan).double()
        if value is not None and value.axis == axis:
            known = value.along
        if getattr(layer, "groups", 1) > 1:
            return [Value(1, self._grouped(layer, known))]
        self.read[index] = known
        return [Value(axis, _layer(layer, known, self.train))]

    def _grouped(self, layer: Any, known: Tensor) -> Tensor:
        """Only outputs without weights are known."""
        alive = used(layer, self.train).any(1).cpu()
        bias = layer.bias
        values = torch.zeros(len(alive)) if bias is None else bias.detach().cpu()
        return values.double().masked_fill(alive, torch.nan)

    def _norm(self, value: Value, op: Op) -> Value | None:
        known = value.along
        tensors = [self._tensor(a) for a in op.args[1:5]]
        scale = known.new_ones(known.shape) if tensors[0] is None else tensors[0]
        shift = known.new_zeros(known.shape) if tensors[1] is None else tensors[1]
        if value.axis != 1 or scale.shape != known.shape:
            return None
        if not self.statistics or tensors[2] is None:
            return Value(1, torch.where(known.isnan(), known, shift))
        eps = next(a for a in reversed(op.args) if isinstance(a, float))
        return Value(1, (known - tensors[2]) / (tensors[3] + eps).sqrt() * scale + shift)  # type: ignore

    def _tensor(self, ref: Any) -> Tensor | None:
        name = self.names.get(ref.number) if isinstance(ref, Ref) else None
        if name is None:
            return None
        owner, _, leaf = name.rpartition(".")
        return getattr(self.modules[owner], leaf).detach().cpu().double()

    def _two(self, op: Op, a: Value, b: Value | None) -> Value | None:
        if b is None or a.axis != b.axis or a.along.shape != b.along.shape or op.kwargs:
            if b is None and op.name == "mul":
                return Value(a.axis, a.along.masked_fill(a.along != 0, torch.nan))
            return None
        if op.name == "add":
            return Value(a.axis, a.along + b.along)
        zero = (a.along == 0) | (b.along == 0)
        return Value(a.axis, (a.along * b.along).masked_fill(zero, 0.0))

    def _pool(self, value: Value, op: Op) -> Value:
        padded = op.name == "avg_pool2d" and len(op.args) > 3 and any(op.args[3])
        counted = padded and (len(op.args) < 6 or op.args[5])
        border = value.along.masked_fill(value.along != 0, torch.nan)
        return Value(value.axis, border if counted else value.along)

    # -- shapes ---------------------------------------------------------------------------------

    def _view(self, value: Value, op: Op) -> list[Value | None] | None:
        old = self.recording.shapes[op.args[0].number]
        new = self.recording.shapes[op.outs[0]]
        for source, target in groups_of(old, new):
            if value.axis not in source:
                continue
            wide = [i for i in target if new[i] > 1]
            if len(wide) != 1:
                return None
            shape = [len(value.along) if i == value.axis else 1 for i in source]
            along = value.along.view(shape).expand([old[i] for i in source]).reshape(-1)
            return [Value(wide[0], along)]
        return None

    def _permute(self, value: Value, op: Op) -> list[Value | None]:
        order = [o % len(op.args[1]) for o in op.args[1]]
        return [Value(order.index(value.axis), value.along)]

    def _transpose(self, value: Value, op: Op) -> list[Value | None]:
        rank = len(self.recording.shapes[op.args[0].number])
        a, b = (i % rank for i in op.args[1:3])
        return [Value({a: b, b: a}.get(value.axis, value.axis), value.along)]

    def _mean(self, value: Value, op: Op) -> list[Value | None] | None:
        rank = len(self.recording.shapes[op.args[0].number])
        gone = {a % rank for a in op.args[1]} if len(op.args) > 1 else {value.axis}
        if value.axis in gone:
            return None
        keep = len(op.args) > 2 and op.args[2]
        before = 0 if keep else sum(a < value.axis for a in gone)
        return [Value(value.axis - before, value.along)]

    def _slice(self, value: Value, op: Op) -> list[Value | None]:
        given = [*op.args[1:], *[0, None, None, 1][len(op.args) - 1 :]]
        axis, start, end, step = given
        along = value.along[start:end:step] if axis == value.axis else value.along
        return [Value(value.axis, along)]

    def _split(self, value: Value, op: Op) -> list[Value | None]:
        axis = op.args[2] if len(op.args) > 2 else 0
        if axis % len(self.recording.shapes[op.args[0].number]) != value.axis:
            return [value] * len(op.outs)
        sizes = [self.recording.shapes[n][value.axis] for n in op.outs]
        return [Value(value.axis, part) for part in value.along.split(sizes)]

    _split_with_sizes = _split

    def _cat(self, tensors: list[Ref], dim: int = 0) -> Value | None:
        rank = len(self.recording.shapes[tensors[0].number])
        axis, known = dim % rank, [self.values.get(t.number) for t in tensors]
        if all(v is None or v.axis == axis for v in known):
            parts = [
                torch.full((self.recording.shapes[t.number][axis],), torch.nan).double()
                if v is None
                else v.along
                for v, t in zip(known, tensors, strict=True)
            ]
            return Value(axis, torch.cat(parts))
        first = known[0]
        if first is None or any(v is None or v.axis != first.axis for v in known):
            return None
        same = torch.stack([v.along == first.along for v in known if v is not None]).all(0)
        return Value(first.axis, first.along.masked_fill(~same, torch.nan))


def _elementwise(op: Op) -> bool:
    return torch.Tag.pointwise in op.func.tags or op.name in UNTAGGED


def _layer(layer: Any, known: Tensor, train: bool) -> Tensor:
    weight = layer.weight.detach().cpu()
    weight = weight.reshape(*weight.shape[:2], -1).sum(2, dtype=torch.float64)
    alive = used(layer, train).cpu()
    blocks = known.isnan()
    if isinstance(layer, nn.Conv2d) and _has_border(layer):
        blocks = blocks | (known != 0)  # a constant is cut off by the padding's zeros
    result = weight @ known.nan_to_num(0.0)
    if layer.bias is not None:
        result += layer.bias.detach().cpu().double()
    return result.masked_fill((alive & blocks).any(1), torch.nan)


def _has_border(conv: nn.Conv2d) -> bool:
    nothing = conv.padding == "valid" or (
        not isinstance(conv.padding, str) and not any(conv.padding)
    )
    return conv.padding_mode == "zeros" and not nothing
