# SPDX-License-Identifier: MIT
"""Physical slimming: networks without the channels that masks have emptied, in place.

`going` decides which channels go and moves their constants, `cutting` takes them out of tensors,
optimizer state and modules. Norms go on with the statistics of the full width (`norms`). What a
network puts out keeps its width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from sparse_ext.compat import unwrapped
from sparse_ext.masks.channels import constant_values
from sparse_ext.masks.channels.cutting import remove_
from sparse_ext.masks.channels.going import choose_
from sparse_ext.masks.channels.tracing import Channels
from sparse_ext.masks.channels.widths import LAYERS


@dataclass
class Report:
    """What slimming removed, what it left and why.

    Attributes:
        widths: channels before and after, by the layer that first writes them, where they differ.
        carriers: how many channels stay only for the constants that they carry.
        parameters: of the first network, before and after.
        obstacles: channels that are empty and stay, and why, by the layer that writes them.
    """

    widths: dict[str, tuple[int, int]]
    carriers: int
    parameters: tuple[int, int]
    obstacles: dict[str, str]

    @property
    def removed(self) -> int:
        """Number of channels that were removed."""
        return sum(before - after for before, after in self.widths.values())


def shrink_(
    nets: Sequence[nn.Module],
    optimizer: Optimizer | None = None,
    train: bool = False,
    multiple: int = 1,
) -> Report:
    """Remove channels from networks of the same modules, the same ones from all of them, in place.

    Args:
        nets: an encoder, or it and its momentum encoder; eval-mode outputs stay the same.
        optimizer: of their parameters; its state is cut with them.
        train: training goes on. Only what masks promise to keep empty goes then, and only where
            train and eval mode agree on the constants, so that the loss stays the same too.
        multiple: as many empty channels stay as make each width a multiple of it. Vector units take
            8 or 16 channels at a time; ONNX Runtime is much slower at other widths.
    """
    nets = [unwrapped(net) for net in nets]
    before = sum(p.numel() for p in nets[0].parameters())
    channels = Channels(nets[0])
    gone, carriers = choose_(channels, nets, train, multiple)
    failed = channels.check(gone) if gone.any() else None
    while failed is not None:  # a combination that no trial had: what it fixes stays
        channels.deal_with(failed)
        gone, carriers = choose_(channels, nets, train, multiple)
        failed = channels.check(gone) if gone.any() else None
    changed = {
        space.name: (space.size, int(space.size - gone[space.units].sum()))
        for space in channels.spaces
        if not space.fixed and gone[space.units].any()
    }
    if changed:
        remove_(channels, nets, gone, optimizer)
    after = sum(p.numel() for p in nets[0].parameters())
    facts = obstacles(channels, nets[0], multiple)
    return Report(changed, carriers, (before, after), facts)


def obstacles(channels: Channels, net: nn.Module, multiple: int = 1) -> dict[str, str]:
    """Outputs without a single weight that are still there: how many, and why, per layer."""
    found = {}
    alive = "others of their residual stream, or their constants, are alive"
    if multiple > 1:
        alive += f", or the width is to be a multiple of {multiple}"
    for name, layer in net.named_modules():
        if not isinstance(layer, LAYERS) or channels.untraced:
            continue
        empty = int((~constant_values.used(layer, train=False).any(1)).sum())
        if empty:
            why = channels.why.get(name) or alive
            size = layer.weight.shape[0]
            found[name] = f"{empty} of {size} outputs are empty and stay: {why}"
    return found
