# SPDX-License-Identifier: MIT
"""Which 8x8 blocks of a convolution's weight are kept, in the orders that the kernels read them.

A block is 8 output by 8 input channels at one kernel position (`block8` of
`sparse_ext.masks.granularity`). The kernel position k reads, for output row a, the input row
a * stride + t with t = k * dilation - padding. With t = shift * stride + phase that is row
a + shift of the `phase` rows of the input (those with index = phase modulo stride), so inside a
phase the stride is gone; columns alike. The input gradient goes the other way: row a of the input's
phase gets from row a - shift of the output's gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sparse_ext.masks.granularity import Block

SIZE = 8


@dataclass(frozen=True)
class Window:
    """How a convolution moves over its input: (vertical, horizontal) each."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    def output_size(self, size: Sequence[int], kernel: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the output for an input of `size`."""
        ends = zip(size, kernel, self.stride, self.padding, self.dilation, strict=True)
        rows, columns = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in ends)
        return rows, columns


@dataclass(frozen=True)
class Listing:
    """The kept blocks in the order of one pass, as int32 tensors.

    Attributes:
        entries: (blocks, 5): source plane (phase in use * channel blocks + channel block), row of
            the source that target row 0 reads, its shift in rows and in columns of the plane, and
            which of the kept blocks it is.
        ranges: entries of target phase p and target block b are
            `ranges[p * target blocks + b] : ranges[p * target blocks + b + 1]`, sorted by row.
        phases: (phases in use, 2): of the source.
        extent: lowest and highest vertical, lowest and highest horizontal shift.
    """

    entries: Tensor
    ranges: Tensor
    phases: Tensor
    extent: tuple[int, int, int, int]


class Plan:
    """The kept blocks of one weight under one mask; nothing in it depends on the input's size.

    Args:
        mask: bool (C_out, C_in, kh, kw), 1 = kept. A block with any kept weight is computed whole:
            pruned weights in it must be stored as zero, as masked layers do.
        window: how the convolution moves.

    Attributes:
        kept: (blocks, 4): vertical and horizontal kernel position, output and input block; sorted
            by output block and vertical position.
    """

    def __init__(self, mask: Tensor, window: Window) -> None:
        self.window = window
        self.shape = tuple(mask.shape)
        outputs, inputs, *kernel = self.shape
        self.kernel = (kernel[0], kernel[1])
        self.blocks = (-(-outputs // SIZE), -(-inputs // SIZE))
        kept = Block(SIZE, pad=True).groups_kept(mask.cpu())
        tiles = kept.reshape(*self.kernel, *self.blocks).permute(2, 0, 3, 1)
        self.kept = tiles.nonzero()[:, [1, 3, 0, 2]]
        self.sparsity = 1 - len(self.kept) / max(1, kept.numel())

    @cached_property
    def coordinates(self) -> Tensor:
        """(blocks, 3), int32: first output channel, first input channel, kernel position."""
        ky, kx, block_out, block_in = self.kept.unbind(1)
        position = ky * self.kernel[1] + kx
        return torch.stack([block_out * SIZE, block_in * SIZE, position], 1).to(torch.int32)

    @cached_property
    def forward(self) -> Listing:
        """From the input's phases to the output; also the order of the weight gradient."""
        _, _, block_out, block_in = self.kept.unbind(1)
        t, shift, phase = self._offsets
        phases, slot = _used(phase)
        plane = slot * self.blocks[1] + block_in
        entries = torch.stack([plane, t, shift[0], shift[1]], 1)
        return self._listing(entries, block_out, self.blocks[0], phases)

    @cached_property
    def backward(self) -> Listing:
        """From the output's gradient to the phases of the input's gradient."""
        _, _, block_out, block_in = self.kept.unbind(1)
        _, shift, phase = self._offsets
        target = (phase[0] * self.window.stride[1] + phase[1]) * self.blocks[1] + block_in
        entries = torch.stack([block_out, -shift[0], -shift[0], -shift[1]], 1)
        targets = self.blocks[1] * self.window.stride[0] * self.window.stride[1]
        return self._listing(entries, target, targets, torch.zeros(1, 2, dtype=torch.int64))

    @property
    def _offsets(self) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """t of the rows; shift and phase of rows and columns."""
        w = self.window
        ends = zip(self.kept.T[:2], w.padding, w.dilation, strict=True)
        t = [position * dilation - padding for position, padding, dilation in ends]
        shift = [x.div(s, rounding_mode="floor") for x, s in zip(t, w.stride, strict=True)]
        phase = [x - y * s for x, y, s in zip(t, shift, w.stride, strict=True)]
        return t[0], shift, phase

    def _listing(self, entries: Tensor, target: Tensor, targets: int, phases: Tensor) -> Listing:
        order = torch.arange(len(entries))
        for key in (entries[:, 1], target):  # last one counts most
            order = order[key[order].argsort(stable=True)]
        ends = torch.bincount(target, minlength=targets).cumsum(0)
        ranges = torch.cat([torch.zeros(1, dtype=torch.int64), ends])
        entries = torch.cat([entries, torch.arange(len(entries))[:, None]], 1)[order]
        first, second, third = (x.to(torch.int32).contiguous() for x in (entries, ranges, phases))
        extent = (*_ends(entries[:, 2]), *_ends(entries[:, 3]))
        return Listing(first, second, third, extent)


def _ends(values: Tensor) -> tuple[int, int]:
    return (int(values.min()), int(values.max())) if len(values) else (0, 0)


def _used(phase: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Phases that occur (at least one row), and for each block which of them it is in."""
    pairs = torch.stack(phase, 1)
    if not len(pairs):
        return torch.zeros(1, 2, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    phases, slot = torch.unique(pairs, dim=0, return_inverse=True)
    return phases, slot
