# SPDX-License-Identifier: MIT
"""The kept weights of one mask, listed for the passes of one input size.

A plan is bound to its mask's content: `Plan.check` compares a fingerprint of it at every use.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sparse_ext.kernels.element.native import library
from sparse_ext.kernels.element.tiles import Cut, Extent, Machine, cut
from sparse_ext.kernels.plan import Window

FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT = "forward", "input gradient", "weight gradient"
BOTH_GRADIENTS = "both gradients"
# fmt: off
_TO_INPUT = (INPUT_GRADIENT, BOTH_GRADIENTS)
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


class _Kernel(ctypes.Structure):
    """The struct `Kernel` of lists.h."""

    _fields_ = [(name, ctypes.c_int64) for name in ("outputs", "inputs", "rows", "cols")] + [  # type: ignore[assignment]
        ("steps", ctypes.c_int64 * 4),
        ("stride", ctypes.c_int64 * 2),
        ("padding", ctypes.c_int64 * 2),
        ("dilation", ctypes.c_int64 * 2),
        ("transposed", ctypes.c_int64),
    ]


class _Lists(ctypes.Structure):
    """The struct `Lists` of passes.h."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("segments", "ranges", "phases")]


def machine(dtype: torch.dtype, kind: str) -> Machine:
    """What the compiled kernel holds in registers for activations of `dtype`."""
    lanes = int(library().element_lanes())
    if dtype == torch.bfloat16:
        capacity = {WEIGHT_GRADIENT: 25, BOTH_GRADIENTS: 12}.get(kind, 13)
        return Machine(2 * lanes, 2, 8 * lanes, capacity, pairs=True)
    wide = {WEIGHT_GRADIENT: 25, BOTH_GRADIENTS: 13}.get(kind, 28)
    narrow = {WEIGHT_GRADIENT: 10, BOTH_GRADIENTS: 0}.get(kind, 12)
    return Machine(lanes, 4, 4 * lanes, wide if lanes == 16 else narrow)


def fingerprint(mask: Tensor) -> int:
    """A number made of the bytes of a mask, in their order in memory."""
    if not mask.is_contiguous():
        dense = mask.dim() == 4 and mask.is_contiguous(memory_format=torch.channels_last)
        mask = mask.permute(0, 2, 3, 1) if dense else mask.contiguous()
    return int(library().element_fingerprint(mask.data_ptr(), mask.numel()))


class Plan:
    """What the kernel needs to know of one mask.

    Args:
        mask: bool, (C_out, C_in, kh, kw) or (C_out, C_in), 1 = kept, on the CPU.
        window: how the convolution moves.
        steps: of the weight in memory, in elements, one for each of its dimensions.

    Attributes:
        count: kept weights.
        density: their share.
    """

    def __init__(self, mask: Tensor, window: Window, steps: Sequence[int]) -> None:
        self.window, self.steps = window, tuple(steps)
        self.seen = fingerprint(mask)
        self.mask = mask.detach().clone(memory_format=torch.contiguous_format)
        shape = tuple(mask.shape)
        self.shape = shape if len(shape) == 4 else (*shape, 1, 1)
        self.count = int(mask.count_nonzero())
        self.density = self.count / max(1, mask.numel())
        self._passes: dict[tuple, list[Pass]] = {}

    def fits(self, mask: Tensor, steps: Sequence[int]) -> bool:
        """Whether this plan is still that of `mask`, whose bytes are read, and of the weight."""
        return self.steps == tuple(steps) and self.seen == fingerprint(mask)

    def passes(
        self, kind: str, images: int, size: tuple[int, int], dtype: torch.dtype
    ) -> list[Pass]:
        """The passes of `kind` for `images` inputs of `size`; more than one for odd numbers."""
        key = (kind, images, size, dtype)
        if key not in self._passes:
            if len(self._passes) > 32:  # batches of ever new sizes
                self._passes.clear()
            self._passes[key] = self._make(kind, images, size, dtype)
        return self._passes[key]

    def _make(
        self, kind: str, images: int, size: tuple[int, int], dtype: torch.dtype
    ) -> list[Pass]:
        box = machine(dtype, kind)
        images, size, groups = self._groups(kind, images, size, box)
        found, first = [], 0
        for lanes, count in groups:
            found.append(Pass(self, kind, (images, first, lanes, count), size, box))
            first += lanes * count
        return found

    def joins(self, images: int, size: tuple[int, int], dtype: torch.dtype) -> bool:
        """Whether passes of `BOTH_GRADIENTS` exist: for images that fill the vectors."""
        box = machine(dtype, BOTH_GRADIENTS)
        groups = self._groups(BOTH_GRADIENTS, images, size, box)[2]
        return box.capacity > 0 and all(lanes % box.width == 0 for lanes, _ in groups)

    def _groups(
        self, kind: str, images: int, size: tuple[int, int], box: Machine
    ) -> tuple[int, tuple[int, int], list[tuple[int, int]]]:
        images, size = self._reshaped(images, size, box.width)
        return images, size, _groups(images, box.width, math.prod(self._sides(size, kind)))

    def _sides(self, size: tuple[int, int], kind: str) -> tuple[int, int]:
        """Rows and columns of the target."""
        return size if kind in _TO_INPUT else self.window.output_size(size, self.shape[2:])  # type: ignore[arg-type]

    def _reshaped(self, images: int, size: tuple[int, int], width: int) -> tuple[int, Any]:
        """Without neighbours, pixels are images: as many of them as a vector holds."""
        plain = self.shape[2:] == (1, 1) and self.window == Window()
        total = images * math.prod(size)
        if not plain:
            return images, size
        return (width, (1, total // width)) if total % width == 0 else (1, (1, total))


def _groups(images: int, width: int, pixels: int) -> list[tuple[int, int]]:
    """(images that are lanes at once, how often) of a batch."""
    if images < width:
        return [(images, 1)]
    whole, rest = divmod(images, width)
    if not rest and pixels * whole <= 12 and whole > 1:
        return [(images, 1)]  # a map of few pixels: all images in one tile
    return [(width, whole)] + ([(rest, 1)] if rest else [])


class Pass:
    """One direction for one number of lanes, and the weights in the order of it."""

    def __init__(
        self,
        plan: Plan,
        kind: str,
        batch: tuple[int, int, int, int],
        size: tuple[int, int],
        box: Machine,
    ) -> None:
        self.kind, self.box = kind, box
        self._filled: object = None
        self.geometry, phases, slots = _geometry(plan, kind, batch, size, box)
        g = self.geometry
        segments = torch.empty(g.nob * g.ncb * g.ob + g.nob * g.ob, 4, dtype=torch.int32)
        ranges = torch.empty(g.nob * g.ncb + 1, dtype=torch.int32)
        self._offsets, self.at = (torch.empty(plan.count + 64, dtype=torch.int32) for _ in "ab")
        kernel = _kernel(plan, kind in _TO_INPUT)
        made = library().element_list(
            ctypes.addressof(g), ctypes.addressof(kernel), plan.mask.data_ptr(), slots.data_ptr(),
            box.size, int(kind != WEIGHT_GRADIENT), self._offsets.data_ptr(), self.at.data_ptr(),
            segments.data_ptr(), ranges.data_ptr(),
        )  # fmt: skip
        self.count, segments = plan.count, segments[:made].clone()
        self.at = self.at[: self.count]
        if box.pairs and kind != WEIGHT_GRADIENT:
            segments = self._pair(segments)
        else:
            self.entries = torch.empty(self.count + 1, 2, dtype=torch.int32)
        self._kept = (segments, ranges, phases)  # memory that `lists` points to
        self.lists = _Lists(*(t.data_ptr() for t in self._kept))
        if kind == WEIGHT_GRADIENT:
            self.entries[: self.count, 0] = self._offsets[: self.count]

    def _pair(self, segments: Tensor) -> Tensor:
        paired = torch.empty_like(segments)
        most = self.count // 2 + len(segments) + 64
        first, second = (torch.zeros(most, dtype=torch.int32) for _ in "ab")
        both = torch.zeros(2 * most, dtype=torch.int32)
        pointers = (t.data_ptr() for t in (self._offsets, self.at, paired, first, second, both))
        made: int = library().element_pairs(segments.data_ptr(), len(segments), *pointers)
        self._offsets, self._second, self.at, self.count = first, second, both[: 2 * made], made
        self.entries = torch.empty(self.count + 1, 3, dtype=torch.int32)
        return paired

    def fill(self, weight: Tensor, key: object = None) -> None:
        """Read the kept weights (float32, in the memory format of the plan).

        With a `key`, nothing is read while it stays the same.
        """
        if key is not None and self._filled == key:
            return
        self._filled = key
        threads = torch.get_num_threads()
        rest = self.at.data_ptr(), self.count, self.entries.data_ptr(), threads
        if self.box.pairs:
            first, second = self._offsets.data_ptr(), self._second.data_ptr()
            library().element_fill_pairs(weight.data_ptr(), first, second, *rest)
        else:
            library().element_fill(weight.data_ptr(), self._offsets.data_ptr(), *rest)

    def run(
        self,
        source: Tensor,
        target: Tensor,
        scale: Tensor | None = None,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        relu: bool = False,
    ) -> None:
        """target = relu(products * scale + bias + residual), for the images of this pass."""
        function = library().element_pass_half if self.box.pairs else library().element_pass
        function(
            self._at_work(), ctypes.addressof(self.lists), source.data_ptr(),
            self.entries.data_ptr(), target.data_ptr(), _ptr(scale), _ptr(bias), _ptr(residual),
            int(relu),
        )  # fmt: skip

    def add_gradient(self, source: Tensor, grad: Tensor, to: Tensor) -> None:
        """Add the gradient of the kept weights to `to` (float32, laid out as the weight)."""
        function = library().element_sums_half if self.box.pairs else library().element_sums
        with self._sums(to) as sums:
            function(
                self._at_work(), ctypes.addressof(self.lists), source.data_ptr(), grad.data_ptr(),
                self.entries.data_ptr(), *sums,
            )  # fmt: skip

    def run_both(
        self, grad: Tensor, target: Tensor, further: Tensor | None, inputs: Tensor, to: Tensor
    ) -> None:
        """target = the input gradient + further; the weight gradient is added to `to`."""
        function = library().element_both_half if self.box.pairs else library().element_both
        with self._sums(to) as sums:
            function(
                self._at_work(), ctypes.addressof(self.lists), grad.data_ptr(),
                self.entries.data_ptr(), target.data_ptr(), _ptr(further), inputs.data_ptr(), *sums,
            )  # fmt: skip

    @contextmanager
    def _sums(self, to: Tensor) -> Iterator[tuple[int, int]]:
        """How many sums a thread takes, and where to; then they are added to `to`."""
        slots, count = library().element_slots(self._at_work()), len(self.at)
        sums = torch.empty(slots, count, dtype=torch.float32)
        yield count, sums.data_ptr()
        library().element_scatter(sums.data_ptr(), slots, self.at.data_ptr(), count, to.data_ptr())

    def _at_work(self) -> int:
        self.geometry.threads = torch.get_num_threads()
        return ctypes.addressof(self.geometry)


def _ptr(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _kernel(plan: Plan, transposed: bool) -> _Kernel:
    pair, four = ctypes.c_int64 * 2, ctypes.c_int64 * 4
    w, steps = plan.window, (*plan.steps, 0, 0)[:4]
    sides = pair(*w.stride), pair(*w.padding), pair(*w.dilation)
    return _Kernel(*plan.shape, four(*steps), *sides, int(transposed))


def _geometry(
    plan: Plan, kind: str, batch: tuple[int, int, int, int], size: tuple[int, int], box: Machine
) -> tuple[Geometry, Tensor, Tensor]:
    """It, the phases of the source in use, and which of them each phase is (-1: none)."""
    outputs, inputs, *kernel = plan.shape
    w = plan.window
    out = w.output_size(size, (kernel[0], kernel[1]))
    shifts, phase = zip(*(_taps(kernel[d], w, d) for d in (0, 1)), strict=True)
    ends = [(min(s), max(s)) for s in shifts]
    here, there = (inputs, *size, *w.stride), (outputs, *out, 1, 1)
    used = sorted({(y, x) for y in phase[0] for x in phase[1]})
    if kind in _TO_INPUT:
        here, there = (outputs, *out, 1, 1), (inputs, *size, *w.stride)
        ends, used = [(-high, -low) for low, high in ends], [(0, 0)]
    slots = torch.full((math.prod(w.stride),), -1, dtype=torch.int64)
    for i, (y, x) in enumerate(used):
        slots[y * w.stride[1] + x] = i
    planes = there[0] * there[3] * there[4]
    rows, cols = -(-there[1] // there[3]), -(-there[2] // there[4])
    density = math.ceil(plan.density * 64) / 64 if plan.density > 1 / 8 else plan.density
    taps = kernel[0] * kernel[1] / (there[3] * there[4])
    halo = (ends[0][1] - ends[0][0], ends[1][1] - ends[1][0])
    extent = Extent(
        here[0], len(used), halo, planes, rows, cols, _coarse(density), taps,  # type: ignore[arg-type]
        kind == WEIGHT_GRADIENT, kind == BOTH_GRADIENTS,
    )  # fmt: skip
    c = _overruled(cut(extent, batch[2], box), kind)
    values = (
        *batch, *here, *there, *ends[0], *ends[1], len(used), -(-rows // c.strips),
        -(-cols // c.coltiles), int(c.flat), c.cb, -(-here[0] // c.cb), c.ob, -(-planes // c.ob),
        c.strips, c.coltiles, 1,
    )  # fmt: skip
    return Geometry(*values), torch.tensor(used, dtype=torch.int32), slots


def _coarse(density: float) -> float:
    """In steps of an eighth of itself, so that slow changes of a mask cut nothing anew."""
    return 2 ** (round(8 * math.log2(max(density, 1e-4))) / 8)


_CUTS: dict[str, Cut] = {}  # of a kind of pass, for experiments


def _overruled(found: Cut, kind: str) -> Cut:
    return _CUTS.get(kind, found)


def _taps(size: int, w: Window, d: int) -> tuple[list[int], list[int]]:
    """Shift and phase of each kernel position along dimension d."""
    t = [k * w.dilation[d] - w.padding[d] for k in range(size)]
    return [x // w.stride[d] for x in t], [x % w.stride[d] for x in t]
