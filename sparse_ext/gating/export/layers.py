# SPDX-License-Identifier: MIT
"""The layers of an exported gated encoder: convolutions that compute chosen channels only.

Weights are gathered for the channels in question, then an ordinary dense kernel runs on the smaller
convolution. Batch norms are folded into the weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class ConvShape:
    """A square convolution: input channels, output channels, kernel, stride, padding."""

    channels: int
    planes: int
    kernel: int
    stride: int = 1
    padding: int = 0


class OpenConv(nn.Module):
    """A convolution with a bias, of which a pass computes some inputs and outputs only.

    Args:
        shape: of the whole convolution.
        last: inputs are chosen, outputs never are. Such weights lie in memory as they are written,
            (P, C, k, k), all others with channels last: the fastest of what we measured on a CPU.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, shape: ConvShape, last: bool = False) -> None:
        super().__init__()
        self.shape = shape
        weight = torch.zeros(shape.planes, shape.channels, shape.kernel, shape.kernel)
        order = torch.contiguous_format if last else torch.channels_last
        self.register_buffer("weight", weight.to(memory_format=order))
        self.register_buffer("bias", torch.zeros(shape.planes))

    def fill(self, weight: Tensor, bias: Tensor) -> None:
        """Take over a weight (P, C, k, k) and a bias (P,)."""
        self.weight.copy_(weight)
        self.bias.copy_(bias)

    def forward(self, x: Tensor, ins: Tensor | None = None, outs: Tensor | None = None) -> Tensor:
        """The chosen outputs, made of the chosen inputs alone.

        Args:
            x: (N, c, H, W), the chosen inputs in order.
            ins: their positions (c,); None = all.
            outs: positions of the outputs (p,); None = all.

        Returns:
            (N, p, H', W').
        """
        bias = self.bias if outs is None else self.bias[outs]
        if x.shape[1] == 0 or len(bias) == 0:
            return bias.view(1, -1, 1, 1).expand(len(x), -1, *self._size(x))
        weight = self._gather(ins, outs)
        return F.conv2d(x, weight, bias, self.shape.stride, self.shape.padding)

    def _gather(self, ins: Tensor | None, outs: Tensor | None) -> Tensor:
        weight = self.weight
        if outs is not None:  # whole rows, and channels stay last
            weight = weight.permute(0, 2, 3, 1).index_select(0, outs).permute(0, 3, 1, 2)
        return weight if ins is None else weight.index_select(1, ins)

    def _size(self, x: Tensor) -> tuple[int, ...]:
        shape = self.shape
        sides = (side + 2 * shape.padding - shape.kernel for side in x.shape[-2:])
        return tuple(side // shape.stride + 1 for side in sides)


class OpenGate(nn.Module):
    """A gate's decision: from the pooled block input to one bit per channel.

    Args:
        channels: C of the block's input.
        hidden: units of the layer between.
        planes: P, channels that are gated.
    """

    reduce: Tensor
    shift: Tensor
    expand: Tensor
    bias: Tensor

    def __init__(self, channels: int, hidden: int, planes: int) -> None:
        super().__init__()
        self.sizes = (channels, hidden, planes)
        self.register_buffer("reduce", torch.zeros(hidden, channels))
        self.register_buffer("shift", torch.zeros(hidden))
        self.register_buffer("expand", torch.zeros(planes, hidden))
        self.register_buffer("bias", torch.zeros(planes))

    def forward(self, pooled: Tensor) -> Tensor:
        """Pooled input (N, C) to bool (N, P), true = open."""
        hidden = torch.relu(F.linear(pooled, self.reduce, self.shift))
        return F.linear(hidden, self.expand, self.bias) >= 0


class OpenBlock(nn.Module):
    """A residual block that computes open channels only.

    Args:
        convs: shapes of the main path's convolutions, two or three.
        hidden: units of each gate; there is one behind every convolution but the last.
        shortcut: shape of the shortcut's convolution, None for the identity.
    """

    def __init__(
        self, convs: list[ConvShape], hidden: list[int], shortcut: ConvShape | None
    ) -> None:
        super().__init__()
        last = len(convs) - 1
        self.convs = nn.ModuleList(OpenConv(s, i == last) for i, s in enumerate(convs))
        gated = zip(convs[:-1], hidden, strict=True)
        channels = convs[0].channels
        self.gates = nn.ModuleList(OpenGate(channels, units, s.planes) for s, units in gated)
        self.shortcut = None if shortcut is None else OpenConv(shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, P, H', W')."""
        pooled = x.mean(dim=(2, 3))
        opened = [gate(pooled) for gate in self.gates]
        identity = x if self.shortcut is None else self.shortcut(x)
        return torch.relu(self._main(x, opened) + identity)

    def _main(self, x: Tensor, opened: list[Tensor]) -> Tensor:
        """Images whose gates agree go together, the others one by one."""
        if len(x) == 1:
            return self._path(x, [bits[0] for bits in opened])
        bits = torch.cat(opened, dim=1)
        kinds, member = torch.unique(bits, dim=0, return_inverse=True)
        if len(kinds) == 1:
            return self._path(x, [each[0] for each in opened])
        out: Tensor | None = None
        for rows in _groups(member, len(kinds)):
            part = self._path(x[rows], [each[rows[0]] for each in opened])
            out = part.new_empty(len(x), *part.shape[1:]) if out is None else out
            out[rows] = part
        return out  # type: ignore[return-value]

    def _path(self, x: Tensor, opened: list[Tensor]) -> Tensor:
        """The main path of images that share their gates, each (P,)."""
        ins: Tensor | None = None
        for conv, bits in zip(self.convs, [*opened, None], strict=True):
            outs = None if bits is None else bits.nonzero().flatten()
            x = conv(x, ins, outs)
            x = x if outs is None else torch.relu(x)
            ins = outs
        return x


def _groups(member: Tensor, kinds: int) -> list[Tensor]:
    """Positions of each kind in `member`, (N,)."""
    order = member.argsort(stable=True)
    return list(order.split(torch.bincount(member, minlength=kinds).tolist()))
