# SPDX-License-Identifier: MIT
"""torchvision's residual blocks with gates between their convolutions.

Made from existing blocks by swapping their class: convolutions, batch norms and shortcut keep
their keys, so the dense branch of a checkpoint is an ordinary ResNet. The gated branch's own batch
norms are `bn1_gated`, `bn2_gated` (`bn3_gated`), its gates `gate` (`gate1`, `gate2`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from sparse_ext.gating.branches import Usage
from sparse_ext.gating.encoder import conv_macs
from sparse_ext.gating.method import Gated
from sparse_ext.gating.methods.channel.gate import ChannelGate


class GatedBlock(Gated):
    """What both kinds share: which norm a branch uses, and the account of a pass."""

    gates: tuple[str, ...]

    def open_gates(self: Any, x: Tensor) -> list[Tensor] | None:
        """Gates (N, P, 1, 1) of this pass in order; None in the dense branch."""
        if self.context.branch == "dense":
            return None
        return [getattr(self, name)(x) for name in self.gates]

    def norm(self: Any, name: str, x: Tensor) -> Tensor:
        """The batch norm `name` of the branch under way."""
        own = f"{name}_gated"
        use_own = hasattr(self, own) and self.context.branch != "dense"
        return getattr(self, own if use_own else name)(x)

    def account(self: Any, maps: list[Tensor], gates: list[Tensor] | None) -> None:
        """Report MACs per image: each convolution by its open inputs and outputs (Dual, Eq. 3).

        Args:
            maps: output of each convolution, in order.
            gates: between them, or None.
        """
        convs = self.own_convs()
        full = [conv_macs(conv, out) for conv, out in zip(convs, maps, strict=True)]
        if gates is None:
            self.record(Usage(sum(full), sum(full)))
            return
        opened = [gate.mean(dim=(1, 2, 3)) for gate in gates]  # share per image, (N,)
        one = torch.ones_like(opened[0])
        ins, outs = [one, *opened], [*opened, one]
        used = sum((i * o * macs).mean() for i, o, macs in zip(ins, outs, full, strict=True))
        used = used + self.gate_macs
        names = [""] if len(gates) == 1 else [f".{name}" for name in self.gates]
        rates = {f"rate{n}": share.mean() for n, share in zip(names, opened, strict=True)}
        self.record(Usage(used, sum(full), rates))

    @property
    def gate_macs(self: Any) -> int:
        """Multiply-accumulates per image of the block's gates."""
        return sum(getattr(self, name).macs for name in self.gates)

    def own_convs(self) -> Iterable[Any]:
        """The main path's convolutions; the shortcut's is never gated."""
        raise NotImplementedError


class GatedBasicBlock(GatedBlock, BasicBlock):
    """A basic residual block with one gate, behind its first convolution."""

    gates = ("gate",)

    def own_convs(self) -> list[nn.Conv2d]:
        """The convolutions whose cost the gate decides: conv1 and conv2."""
        return [self.conv1, self.conv2]

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, P, H', W')."""
        gates = self.open_gates(x)
        first = self.conv1(x)
        out = self.relu(self.norm("bn1", first))
        if gates is not None:
            out = out * gates[0].to(out.dtype)
        second = self.conv2(out)
        self.account([first, second], gates)
        out = self.norm("bn2", second)
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class GatedBottleneck(GatedBlock, Bottleneck):
    """One gate behind each of the first two convolutions (not in the paper)."""

    gates = ("gate1", "gate2")

    def own_convs(self) -> list[nn.Conv2d]:
        """The convolutions whose cost the gates decide: conv1, conv2 and conv3."""
        return [self.conv1, self.conv2, self.conv3]

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, 4 P, H', W')."""
        gates = self.open_gates(x)
        maps, out = [], x
        for index, conv in enumerate(self.own_convs()):
            maps.append(conv(out))
            out = self.norm(f"bn{index + 1}", maps[-1])
            if index < 2:
                out = self.relu(out)
                out = out if gates is None else out * gates[index].to(out.dtype)
        self.account(maps, gates)
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


GATED: dict[type[nn.Module], type[GatedBlock]] = {
    BasicBlock: GatedBasicBlock,
    Bottleneck: GatedBottleneck,
}


def gate_block(block: Any, config: Any, separate_bn: bool) -> Any:
    """Turn a `BasicBlock` or `Bottleneck` into its gated form, in place.

    Args:
        block: torchvision's block.
        config: a `VICRegGatingConfig`.
        separate_bn: give the gated branch batch norms of its own.
    """
    block.__class__ = GATED[type(block)]
    convs = block.own_convs()
    for name, conv in zip(block.gates, convs, strict=False):
        args = (convs[0].in_channels, conv.out_channels)
        gate = ChannelGate(*args, config.reduction, config.temperature, config.gate_bias_init)
        block.add_module(name, gate)
    if separate_bn:
        for index in range(1, len(convs) + 1):
            norm = copy.deepcopy(getattr(block, f"bn{index}"))
            block.add_module(f"bn{index}_gated", norm)
    return block
