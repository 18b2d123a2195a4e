# SPDX-License-Identifier: MIT
"""What a network costs without some of its units, from the shapes of its tensors.

Nothing is removed for that: shapes are foretold. Biases, norms and products of attention count,
too; what stays to carry constants does not (see `sparse_ext.masks.channels.removal`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sparse_ext.masks.channels.recording import Op, Ref, record
from sparse_ext.masks.channels.tracing import Channels

PRODUCTS = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}  # which argument is the left factor


class Parameters:
    """The number of parameters.

    Args:
        channels: of the network.
    """

    def __init__(self, channels: Channels) -> None:
        self.channels = channels
        self.names = {name for name, _ in channels.net.named_parameters()}

    def __call__(self, gone: np.ndarray) -> float:
        """Parameters that are left without some units.

        Args:
            gone: bool per unit, whether it goes.
        """
        shapes = self.channels.shapes(gone)
        return float(sum(math.prod(s) for name, s in shapes.items() if name in self.names))


class Macs:
    """Multiply-accumulates of convolutions and matrix products per image.

    Args:
        channels: of the network.
        shape: (C, H, W) of an image; by default that with which the network was followed.
    """

    def __init__(self, channels: Channels, shape: Sequence[int] | None = None) -> None:
        self.channels = channels
        ops = channels.recording.ops
        self.counted = [op for op in ops if op.name == "convolution" or op.name in PRODUCTS]
        sizes = channels.recording.shapes
        self.scale = [1.0 for _ in self.counted]
        if shape is not None and tuple(shape) != channels.input_shape[1:]:
            again = record(channels.net, (channels.input_shape[0], *shape))
            others = [op for op in again.ops if op.name == "convolution" or op.name in PRODUCTS]
            if not again.error and [o.name for o in others] == [o.name for o in self.counted]:
                pairs = zip(self.counted, others, strict=True)
                self.scale = [_macs(b, again.shapes) / _macs(a, sizes) for a, b in pairs]

    def __call__(self, gone: np.ndarray) -> float:
        """Multiply-accumulates per image that are left without some units.

        Args:
            gone: bool per unit, whether it goes.
        """
        known = _Foretold(self.channels, self.channels.gone(gone))
        total = sum(s * _macs(op, known) for op, s in zip(self.counted, self.scale, strict=True))
        return total / self.channels.input_shape[0]


@dataclass(frozen=True)
class _Foretold:
    """Shapes of tensors by number, without what goes."""

    channels: Channels
    gone: np.ndarray

    def __getitem__(self, number: int) -> tuple[int, ...]:
        return self.channels.foretold(number, self.gone)


def _macs(op: Op, shapes: list[tuple[int, ...]] | _Foretold) -> int:
    """Multiply-accumulates of one operation, of all images."""
    if op.name == "convolution":
        x, weight, out = shapes[_number(op, 0)], shapes[_number(op, 1)], shapes[op.outs[0]]
        transposed = bool(op.args[6])
        return math.prod(x if transposed else out) * math.prod(weight[1:])
    left = shapes[_number(op, PRODUCTS[op.name])]
    return math.prod(shapes[op.outs[0]]) * left[-1]


def _number(op: Op, position: int) -> int:
    ref: Ref = op.args[position]
    return ref.number
