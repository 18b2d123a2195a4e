# SPDX-License-Identifier: MIT
"""Physical slimming: networks without the channels that masks have emptied, in place.

A channel can go if every layer that reads it either has only zeros for it, or sees the same value
at every image and position. Constant zeros simply go. Channels with other constants go as well, but
for one (on a residual stream, whose readers see different constants, a few): its weights take over
theirs, W_m += sum_c k_c / k_m W_c, so that what the readers compute stays exact up to the border of
a padded convolution. What a network puts out keeps its width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparse_ext.compat import unwrapped
from sparse_ext.masks.channels import constant_values
from sparse_ext.masks.channels.tracing import Channels, Space
from sparse_ext.masks.channels.widths import LIKE_WEIGHT, MARK, PER_CHANNEL, declare

FAINT = 0.01  # of a reader's largest constant: less cannot carry the others without rounding errors


class Reader(NamedTuple):
    """A layer of one of the networks, as the reader of a space.

    Attributes:
        layer: the module.
        columns: columns of its weight per channel.
        values: the constant that it reads per channel, NaN where that varies.
        blind: bool per channel, all weights for it are zero.
    """

    layer: Any
    columns: int
    values: Tensor
    blind: Tensor

    @property
    def missed(self) -> Tensor:
        """Channels whose constant it would miss."""
        return ~self.blind & (self.values != 0) & ~self.values.isnan()


class Cut(NamedTuple):
    """Which channels of a space go, and who reads them.

    Attributes:
        space: theirs.
        keep: indices of those that stay.
        carriers: those that stay only for their constants and those of others that go.
        readers: the layers that read them, in all networks.
    """

    space: Space
    keep: Tensor
    carriers: list[int]
    readers: list[Reader]

    @property
    def removes(self) -> bool:
        """Whether at least one channel of the space goes."""
        return self.keep.numel() < self.space.size


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
    widths = {space.name: space.size for space in channels.spaces}
    cuts = _cuts(channels, nets, train, multiple)
    while any(cut.removes for cut in cuts):
        for cut in cuts:
            if cut.removes:
                _merge(cut)
                for net in nets:
                    _apply(cut, net, optimizer)
                cut.space.size = cut.keep.numel()
        cuts = _cuts(channels, nets, train, multiple)
    carriers = sum(len(cut.carriers) for cut in cuts)
    sizes = {space.name: space.size for space in channels.spaces}
    changed = {name: (widths[name], n) for name, n in sizes.items() if n != widths[name]}
    if changed:
        for net in nets:
            net.register_buffer(MARK, torch.tensor(True))
    after = sum(p.numel() for p in nets[0].parameters())
    return Report(changed, carriers, (before, after), obstacles(channels, nets[0], multiple))


def _cuts(channels: Channels, nets: Sequence[nn.Module], train: bool, multiple: int) -> list[Cut]:
    values = [constant_values.inputs(channels, net, train) for net in nets]
    spaces = [space for space in channels.spaces if not space.fixed and space.consumers]
    cuts = []
    for space in spaces:
        readers = [
            _reader(net.get_submodule(name), columns, known[name], train)
            for net, known in zip(nets, values, strict=True)
            for name, columns in space.consumers.items()
        ]
        cuts.append(_cut(space, readers, multiple))
    return cuts


def _reader(layer: Any, columns: int, values: Tensor, train: bool) -> Reader:
    alive = constant_values.used(layer, train).any(0).cpu()
    return Reader(layer, columns, values, ~alive.view(-1, columns).any(1))


def _cut(space: Space, readers: list[Reader], multiple: int) -> Cut:
    gone = torch.stack([r.blind | ~r.values.isnan() for r in readers]).all(0)
    carriers = _carriers([torch.where(r.missed & gone, r.values.abs(), 0.0) for r in readers])
    gone[carriers] = False
    if gone.all():
        gone[0] = False  # a layer without channels is none
    spare = -int((~gone).sum()) % multiple
    gone[gone.nonzero()[:spare, 0]] = False
    return Cut(space, (~gone).nonzero()[:, 0], carriers, readers)


def _carriers(missed: list[Tensor]) -> list[int]:
    """Few channels, so that every reader that would miss constants reads one that can carry them.

    Args:
        missed: per reader, the size of each channel's constant; zero where it would not be missed.
    """
    able = torch.stack([(m > 0) & (m >= FAINT * m.max()) for m in missed])
    waiting, chosen = able.any(1), []
    while waiting.any():
        best = int(able[waiting].sum(0).argmax())
        chosen.append(best)
        waiting &= ~able[:, best]
    return chosen


@torch.no_grad()
def _merge(cut: Cut) -> None:
    """The carriers' columns take over what the channels that go have contributed."""
    gone = torch.ones(cut.space.size, dtype=torch.bool)
    gone[cut.keep] = False
    for reader in cut.readers:
        carried = reader.missed & gone
        if not carried.any():
            continue
        carrier = max(cut.carriers, key=lambda c: float(reader.values[c].nan_to_num(0.0).abs()))
        share = torch.where(carried, reader.values / reader.values[carrier], 0.0)
        for name in ("weight", "shadow"):
            tensor = getattr(reader.layer, name, None)
            if tensor is not None:
                parts = _by_channel(tensor.detach(), reader.columns)
                moved = torch.einsum("oc...,c->o...", parts.double(), share.to(parts.device))
                parts[:, carrier] += moved.to(parts.dtype)
        _merge_masks(reader, carrier, carried)


def _merge_masks(reader: Reader, carrier: int, carried: Tensor) -> None:
    """Weights that took something over are kept ones."""
    mask = getattr(reader.layer, "mask", None)
    if mask is None:
        return
    parts = _by_channel(mask, reader.columns)
    parts[:, carrier] |= parts[:, carried.to(mask.device)].any(1)
    if hasattr(reader.layer, "shadow"):
        reader.layer.shadow.masked_fill_(mask, 0)


def _by_channel(tensor: Tensor, columns: int) -> Tensor:
    """A view (outputs, channels, the rest) of a tensor of a weight's shape."""
    return tensor.unflatten(1, (-1, columns)) if columns > 1 else tensor


def _apply(cut: Cut, net: nn.Module, optimizer: Optimizer | None) -> None:
    for name in cut.space.producers:
        layer: Any = net.get_submodule(name)
        for tensor in (*LIKE_WEIGHT, "bias"):
            _select(layer, tensor, 0, cut.keep, optimizer)
        declare(layer)
    for name, columns in cut.space.consumers.items():
        layer = net.get_submodule(name)
        index = (cut.keep.unsqueeze(1) * columns + torch.arange(columns)).flatten()
        for tensor in LIKE_WEIGHT:
            _select(layer, tensor, 1, index, optimizer)
        declare(layer)
    for name in cut.space.norms:
        norm: Any = net.get_submodule(name)
        for tensor in PER_CHANNEL:
            _select(norm, tensor, 0, cut.keep, optimizer)
        norm.num_features = cut.keep.numel()


def _select(
    module: nn.Module, name: str, dim: int, index: Tensor, optimizer: Optimizer | None
) -> None:
    tensor = getattr(module, name, None)
    if tensor is None:
        return
    new = _part(tensor, dim, index)
    if isinstance(tensor, nn.Parameter):
        parameter = nn.Parameter(new, requires_grad=tensor.requires_grad)
        if optimizer is not None:
            _replace(optimizer, tensor, parameter, dim, index)
        new = parameter
    setattr(module, name, new)


def _part(tensor: Tensor, dim: int, index: Tensor) -> Tensor:
    """Some rows or columns, in the tensor's memory format."""
    part = tensor.detach().index_select(dim, index.to(tensor.device))
    last = torch.channels_last
    if tensor.ndim == 4 and tensor.is_contiguous(memory_format=last) and not tensor.is_contiguous():
        return part.contiguous(memory_format=last)
    return part.contiguous()


def _replace(
    optimizer: Optimizer, old: nn.Parameter, new: nn.Parameter, dim: int, index: Tensor
) -> None:
    for group in optimizer.param_groups:
        group["params"] = [new if p is old else p for p in group["params"]]
    if old in optimizer.state:
        state = optimizer.state.pop(old)
        optimizer.state[new] = {
            key: _part(value, dim, index)
            if isinstance(value, Tensor) and value.shape == old.shape
            else value
            for key, value in state.items()
        }


def obstacles(channels: Channels, net: nn.Module, multiple: int = 1) -> dict[str, str]:
    """Outputs without a single weight that are still there: how many, and why, per layer."""
    found = {}
    alive = "others of their residual stream, or their constants, are alive"
    if multiple > 1:
        alive += f", or the width is to be a multiple of {multiple}"
    for name, space in channels.writes.items():
        layer: Any = net.get_submodule(name)
        empty = int((~constant_values.used(layer, train=False).any(1)).sum())
        if empty:
            why = space.fixed or alive
            found[name] = f"{empty} of {space.size} outputs are empty and stay: {why}"
    return found
