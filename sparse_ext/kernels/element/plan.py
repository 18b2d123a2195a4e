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

from sparse_ext.kernels.element.geometry import (
    BOTH_GRADIENTS,
    TO_INPUT,
    WEIGHT_GRADIENT,
    Weight,
    geometry_of,
)
from sparse_ext.kernels.element.native import library
from sparse_ext.kernels.element.tiles import Machine
from sparse_ext.kernels.plan import Window


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
        kept: where they are stored, ascending, in elements.
        ranks: for each element of the weight how many kept ones are stored before it.
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
        ranks = torch.cumsum(_as_stored(self.mask, self.steps), 0, dtype=torch.int32)
        self.kept = _as_stored(self.mask, self.steps).nonzero()[:, 0].int()
        self.ranks = ranks.sub_(1)

    def spread(self, values: Tensor, like: Tensor) -> Tensor:
        """`values` of the kept weights as a tensor laid out `like` the weight, zero elsewhere."""
        out = torch.empty_like(like)
        rest = self.kept.data_ptr(), self.count, out.numel(), out.data_ptr(), _threads()
        library().element_spread(values.data_ptr(), *rest)
        return out

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
        return size if kind in TO_INPUT else self.window.output_size(size, self.shape[2:])  # type: ignore[arg-type]

    def _reshaped(self, images: int, size: tuple[int, int], width: int) -> tuple[int, Any]:
        """Without neighbours, pixels are images: as many of them as a vector holds."""
        plain = self.shape[2:] == (1, 1) and self.window == Window()
        total = images * math.prod(size)
        if not plain:
            return images, size
        return (width, (1, total // width)) if total % width == 0 else (1, (1, total))


class Kept:
    """The kept weights as they are when they are first read, for all passes of one call.

    Args:
        plan: of their mask.
        weight: float32, in the memory format of the plan.
    """

    def __init__(self, plan: Plan, weight: Tensor) -> None:
        self._kept, self._weight = plan.kept, weight
        self._values: dict[bool, Tensor] = {}

    def values(self, half: bool) -> Tensor:
        """(count,) in the order of memory; half: rounded to bfloat16, as bits."""
        if half not in self._values:
            values = torch.empty(len(self._kept), dtype=torch.float32)
            library().element_gather(
                self._weight.data_ptr(), self._kept.data_ptr(), len(self._kept), int(half),
                values.data_ptr(), _threads(),
            )  # fmt: skip
            self._values[half] = values
        return self._values[half]


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
        self.geometry, phases, slots = geometry_of(
            Weight(plan.shape, plan.window, plan.density), kind, batch, size, box
        )
        g = self.geometry
        segments = torch.empty(g.nob * g.ncb * g.ob + g.nob * g.ob, 4, dtype=torch.int32)
        ranges = torch.empty(g.nob * g.ncb + 1, dtype=torch.int32)
        self._offsets, self.at = (torch.empty(plan.count + 64, dtype=torch.int32) for _ in "ab")
        kernel = _kernel(plan, kind in TO_INPUT)
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
        self.at = torch.where(self.at < 0, -1, plan.ranks[self.at.clamp(min=0)]).int()
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

    def fill(self, weights: Kept, key: object = None) -> None:
        """Take the kept weights.

        With a `key`, nothing is read while it stays the same.
        """
        if key is not None and self._filled == key:
            return
        self._filled = key
        values = weights.values(self.box.pairs)
        rest = self.at.data_ptr(), self.count, self.entries.data_ptr(), _threads()
        if self.box.pairs:
            first, second = self._offsets.data_ptr(), self._second.data_ptr()
            library().element_fill_pairs(values.data_ptr(), first, second, *rest)
        else:
            library().element_fill(values.data_ptr(), self._offsets.data_ptr(), *rest)

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
        """Add the gradient of the kept weights to `to` (float32, in the order of memory)."""
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
        rest = self.at.data_ptr(), count, to.data_ptr(), _threads()
        library().element_collect(sums.data_ptr(), slots, *rest)

    def _at_work(self) -> int:
        self.geometry.threads = _threads()
        return ctypes.addressof(self.geometry)


def _as_stored(mask: Tensor, steps: Sequence[int]) -> Tensor:
    """The elements of a mask in the order of memory of a weight with these steps."""
    order = sorted(range(mask.dim()), key=lambda d: -steps[d])
    return mask.permute(order).reshape(-1)


def _threads() -> int:
    return torch.get_num_threads()


def _ptr(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _kernel(plan: Plan, transposed: bool) -> _Kernel:
    pair, four = ctypes.c_int64 * 2, ctypes.c_int64 * 4
    w, steps = plan.window, (*plan.steps, 0, 0)[:4]
    sides = pair(*w.stride), pair(*w.padding), pair(*w.dilation)
    return _Kernel(*plan.shape, four(*steps), *sides, int(transposed))
