# SPDX-License-Identifier: MIT
"""What a pass of the element-wise kernel goes over, as its library wants to know it."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_ext.kernels.element.tiles import Extent, Machine, cut
from sparse_ext.kernels.plan import Window

FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT = "forward", "input gradient", "weight gradient"
BOTH_GRADIENTS = "both gradients"
# fmt: off
TO_INPUT = (INPUT_GRADIENT, BOTH_GRADIENTS)
_GEOMETRY = (
    "images", "first", "lanes", "groups",
    "sc", "sh", "sw", "ssy", "ssx", "tc", "th", "tw", "tsy", "tsx",
    "min_y", "max_y", "min_x", "max_x", "phases",
    "rows", "cols", "flat", "cb", "ncb", "ob", "nob", "strips", "coltiles", "threads",
)
# fmt: on


class Geometry(ctypes.Structure):
    """The struct `Geometry` of geometry.h."""

    _fields_ = [(name, ctypes.c_int64) for name in _GEOMETRY]


@dataclass(frozen=True)
class Weight:
    """Shape (outputs, inputs, rows, columns), movement and share of kept weights."""

    shape: tuple[int, ...]
    window: Window
    density: float


def geometry_of(
    weight: Weight, kind: str, batch: tuple[int, int, int, int], size: tuple[int, int], box: Machine
) -> tuple[Geometry, Tensor, Tensor]:
    """It, the phases of the source in use, and which of them each phase is (-1: none)."""
    outputs, inputs, *kernel = weight.shape
    w = weight.window
    out = w.output_size(size, (kernel[0], kernel[1]))
    shifts, phase = zip(*(_taps(kernel[d], w, d) for d in (0, 1)), strict=True)
    ends = [(min(s), max(s)) for s in shifts]
    here, there = (inputs, *size, *w.stride), (outputs, *out, 1, 1)
    used = sorted({(y, x) for y in phase[0] for x in phase[1]})
    if kind in TO_INPUT:
        here, there = (outputs, *out, 1, 1), (inputs, *size, *w.stride)
        ends, used = [(-high, -low) for low, high in ends], [(0, 0)]
    slots = torch.full((math.prod(w.stride),), -1, dtype=torch.int64)
    for i, (y, x) in enumerate(used):
        slots[y * w.stride[1] + x] = i
    planes = there[0] * there[3] * there[4]
    rows, cols = -(-there[1] // there[3]), -(-there[2] // there[4])
    density = math.ceil(weight.density * 64) / 64 if weight.density > 1 / 8 else weight.density
    taps = kernel[0] * kernel[1] / (there[3] * there[4])
    halo = (ends[0][1] - ends[0][0], ends[1][1] - ends[1][0])
    extent = Extent(
        here[0], len(used), halo, planes, rows, cols, _coarse(density), taps,  # type: ignore[arg-type]
        kind == WEIGHT_GRADIENT, kind == BOTH_GRADIENTS,
    )  # fmt: skip
    c = cut(extent, batch[2], box)
    values = (
        *batch, *here, *there, *ends[0], *ends[1], len(used), -(-rows // c.strips),
        -(-cols // c.coltiles), int(c.flat), c.cb, -(-here[0] // c.cb), c.ob, -(-planes // c.ob),
        c.strips, c.coltiles, 1,
    )  # fmt: skip
    return Geometry(*values), torch.tensor(used, dtype=torch.int32), slots


def _coarse(density: float) -> float:
    """In steps of an eighth of itself, so that slow changes of a mask cut nothing anew."""
    return 2 ** (round(8 * math.log2(max(density, 1e-4))) / 8)


def _taps(size: int, w: Window, d: int) -> tuple[list[int], list[int]]:
    """Shift and phase of each kernel position along dimension d."""
    t = [k * w.dilation[d] - w.padding[d] for k in range(size)]
    return [x // w.stride[d] for x in t], [x % w.stride[d] for x in t]
