# SPDX-License-Identifier: MIT
"""Which channels go: the empty ones, and those whose constant another channel takes over.

A channel can go if every layer that reads it either has only zeros for it, or sees the same value
at every image and position. Constant zeros simply go. Channels with other constants go as well, but
for one (on a residual stream, whose readers see different constants, a few): its weights take over
theirs, W_m += sum_c k_c / k_m W_c, so that what the readers compute stays exact up to the border of
a padded convolution. Where channels are multiplied, normalised over or attended with, one goes if
all its parameters are zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sparse_ext.masks.channels import constant_values
from sparse_ext.masks.channels.spaces import Space
from sparse_ext.masks.channels.tracing import Channels
from sparse_ext.masks.channels.widths import LIKE_WEIGHT
from sparse_ext.masks.masked_layers import Masked

FAINT = 0.01  # of a reader's largest constant: less cannot carry the others without rounding errors


class Reader(NamedTuple):
    """A layer of one of the networks, as the reader of a space.

    Attributes:
        layer: the module.
        places: columns of its weight, (channels, columns per channel).
        values: the constant that it reads per channel, NaN where that varies.
        blind: bool per channel, all weights for it are zero.
    """

    layer: Any
    places: Tensor
    values: Tensor
    blind: Tensor

    @property
    def missed(self) -> Tensor:
        """Channels whose constant it would miss."""
        return ~self.blind & (self.values != 0) & ~self.values.isnan()


def choose_(
    channels: Channels, nets: Sequence[nn.Module], train: bool, multiple: int
) -> tuple[np.ndarray, int]:
    """Units that go (bool per unit), and how many others stay to carry constants.

    The arguments are those of `removal.shrink_`. Networks keep their sizes here; what goes is zero
    afterwards, also for its readers.
    """
    gone = torch.zeros(channels.units, dtype=torch.bool)
    empty = torch.stack([_empty(channels, net, train) for net in nets]).all(0)
    for space in channels.spaces:
        if not space.fixed and space.rough:
            going = empty[torch.as_tensor(space.units)]
            gone[torch.as_tensor(space.units)] = _rounded(space, going, multiple)
    plain = [s for s in channels.spaces if not s.fixed and not s.rough]
    carriers: dict[str, list[int]] = {}
    changed = bool(plain)
    while changed:
        changed = False
        values = [constant_values.inputs(channels, net, train) for net in nets]
        for space in plain:
            units = torch.as_tensor(space.units)
            readers = [
                r
                for net, known in zip(nets, values, strict=True)
                for r in _readers(channels, net, known, space, train)
            ]
            going, carry = _cut(space, readers, gone[units], multiple)
            carriers[space.name] = carry
            if (going & ~gone[units]).any():
                changed = True
                _merge(readers, going & ~gone[units], carry)
                gone[units] = going
                _clear(channels, nets, space, going)
    return gone.numpy(), sum(len(c) for c in carriers.values())


def _empty(channels: Channels, net: nn.Module, train: bool) -> Tensor:
    """Units all of whose parameters and buffers are zero, for good where training goes on.

    The running statistics of batch norms may be anything: without scale and shift they do nothing.
    """
    alive = np.zeros(channels.units + 1, dtype=bool)
    written = np.zeros(channels.units + 1, dtype=bool)
    modules = dict(net.named_modules())
    tensors = dict(net.named_parameters()) | dict(net.named_buffers())
    for name, columns in channels.conditions.items():
        running = name.rpartition(".")[2].startswith("running_")
        if running or not any(units.size for units in columns):
            continue  # among these: side buffers, which not every network has
        owner = modules[name.rpartition(".")[0]]
        masked = train and isinstance(owner, Masked) and name.endswith("weight")
        tensor = owner.mask if masked else tensors[name].detach()
        for axis, units in enumerate(columns):
            if not units.size:
                continue
            rest = [a for a in range(tensor.ndim) if a != axis]
            lives = (tensor != 0).any(rest) if rest else tensor != 0  # type: ignore[arg-type]
            lives = lives.cpu().numpy()
            for k in range(units.shape[1]):
                np.logical_or.at(alive, units[:, k], lives)
                written[units[:, k]] = True
    return torch.from_numpy(~alive[:-1] & written[:-1])


def _rounded(space: Space, going: Tensor, multiple: int) -> Tensor:
    """As many of the empty units stay as make their number a multiple."""
    going = going.clone()
    if going.all():
        going[0] = False  # a layer without channels is none
    if not space.name.endswith((":head", ":group", ":axis")):
        spare = -int((~going).sum()) % multiple
        going[going.nonzero()[:spare, 0]] = False
    return going


def _readers(
    channels: Channels, net: nn.Module, known: dict[int, Tensor], space: Space, train: bool
) -> list[Reader]:
    found = []
    for index, layer_name, units in channels.readers(space):
        layer: Any = net.get_submodule(layer_name)
        order = np.argsort(units, kind="stable")
        columns = np.flatnonzero(np.isin(units, space.units))
        order = order[np.isin(order, columns)]
        index_ = torch.from_numpy(order).view(space.size, -1)
        values = known.get(index, torch.full((len(units),), torch.nan).double())[index_]
        alive = constant_values.used(layer, train).any(0).cpu()[index_].any(1)
        same = (values == values[:, :1]).all(1)
        found.append(Reader(layer, index_, values[:, 0].masked_fill(~same, torch.nan), ~alive))
    return found


def _cut(
    space: Space, readers: list[Reader], before: Tensor, multiple: int
) -> tuple[Tensor, list[int]]:
    """Which channels go (bool), and which of the others stay to carry constants."""
    if not readers:
        return before, []
    gone = torch.stack([r.blind | ~r.values.isnan() for r in readers]).all(0) | before
    missed = [torch.where(r.missed & gone, r.values.abs(), 0.0) for r in readers]
    carriers = _carriers(missed)
    gone[carriers] = False
    if gone.all():
        gone[0] = False  # a layer without channels is none
    spare = -int((~gone).sum()) % multiple
    gone[(gone & ~before).nonzero()[:spare, 0]] = False
    return gone, carriers


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
def _merge(readers: list[Reader], going: Tensor, carriers: list[int]) -> None:
    """The carriers' columns take over what the channels that go have contributed."""
    for reader in readers:
        carried = reader.missed & going
        if not carried.any():
            continue
        carrier = max(carriers, key=lambda c: float(reader.values[c].nan_to_num(0.0).abs()))
        share = torch.where(carried, reader.values / reader.values[carrier], 0.0)
        for name in ("weight", "shadow"):
            tensor = getattr(reader.layer, name, None)
            if tensor is not None:
                parts = tensor.detach()[
                    :, reader.places.to(tensor.device)
                ]  # (o, channels, columns)
                moved = torch.einsum("oc...,c->o...", parts.double(), share.to(parts.device))
                tensor.data[:, reader.places[carrier].to(tensor.device)] += moved.to(parts.dtype)
        _merge_masks(reader, carrier, carried)


def _merge_masks(reader: Reader, carrier: int, carried: Tensor) -> None:
    """Weights that took something over are kept ones."""
    mask = getattr(reader.layer, "mask", None)
    if mask is None:
        return
    index = reader.places.to(mask.device)
    mask[:, index[carrier]] |= mask[:, index[carried.to(mask.device)]].any(1)
    if hasattr(reader.layer, "shadow"):
        reader.layer.shadow.masked_fill_(mask, 0)


@torch.no_grad()
def _clear(channels: Channels, nets: Sequence[nn.Module], space: Space, going: Tensor) -> None:
    """What goes is zero in every weight, so that what only it read can go next."""
    wide = np.zeros(channels.units + 1, dtype=bool)
    wide[space.units[going.numpy()]] = True
    layers = [*space.producers, *space.consumers]
    for net in nets:
        for layer_name in layers:
            layer: Any = net.get_submodule(layer_name)
            for axis, units in enumerate(channels.conditions[f"{layer_name}.weight"][:2]):
                if not units.size:
                    continue
                index = torch.from_numpy(np.flatnonzero(wide[units].any(1)))
                for name in LIKE_WEIGHT:
                    tensor = getattr(layer, name, None)
                    if tensor is not None:
                        tensor.data.index_fill_(axis, index.to(tensor.device), 0)
