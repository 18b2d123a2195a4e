# SPDX-License-Identifier: MIT
"""Physical slimming: networks without the channels that masks have emptied, in place.

A channel can go if every layer that reads it either has only zeros for it, or sees the same value
at every image and position. Constant zeros simply go. Channels with other constants go as well, but
for one (on a residual stream, whose readers see different constants, a few): its weights take over
theirs, W_m += sum_c k_c / k_m W_c, so that what the readers compute stays exact up to the border of
a padded convolution. Where channels are multiplied, normalised over or attended with, one goes if
all its parameters are zero; norms then go on with the statistics of the full width. What a network
puts out keeps its width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparse_ext.compat import unwrapped
from sparse_ext.masks.channels import attention, constant_values, widths
from sparse_ext.masks.channels.norms import correctable
from sparse_ext.masks.channels.tracing import Channels, Space
from sparse_ext.masks.channels.widths import LAYERS, LIKE_WEIGHT
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
    gone, carriers = _choose(channels, nets, train, multiple)
    failed = channels.check(gone) if gone.any() else None
    while failed is not None:  # a combination that no trial had: what it fixes stays
        channels.deal_with(failed)
        gone, carriers = _choose(channels, nets, train, multiple)
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


def _choose(
    channels: Channels, nets: Sequence[nn.Module], train: bool, multiple: int
) -> tuple[np.ndarray, int]:
    """Units that go (bool per unit), and how many others stay to carry constants.

    The networks keep their sizes here; what goes is zero afterwards, also for its readers.
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


def remove_(
    channels: Channels,
    nets: Sequence[nn.Module],
    gone: np.ndarray,
    optimizer: Optimizer | None = None,
) -> None:
    """Cut units out of networks, whatever their values are: tensors, and what modules say of them.

    Args:
        channels: of one of the networks, or of their equal.
        nets: networks of one architecture.
        gone: bool per unit, True = it goes.
        optimizer: whose state is cut, too.
    """
    keep = channels.keep(gone)
    attributes, norms = channels.attributes(gone), _norms(channels, gone)
    switched = _unfused(channels, gone)
    for net in nets:
        before = attention.adapt(net)
        swapped = {module for module, _, _ in before}
        names = {name for name, module in net.named_modules() if module in swapped}
        touched = {
            n.rpartition(".")[0] for n, axes in keep.items() if any(a is not None for a in axes)
        }
        if not any(t == n or t.startswith(f"{n}.") for n in names for t in touched):
            attention.restore(before)
        else:
            attention.restore_switches(before, {net.get_submodule(n) for n in switched})
        _cut_tensors(net, keep, optimizer)
        about = {
            "attributes": attributes,
            "norms": norms,
            "switched": sorted(switched),
            "buffers": _unsaved(net, keep),
        }
        widths.tell(net, about)


def _unsaved(net: nn.Module, keep: dict[str, list[np.ndarray | None]]) -> dict[str, dict]:
    """What stays of buffers that no file holds, by name and axis."""
    saved = net.state_dict().keys()
    return {
        name: {str(a): index.tolist() for a, index in enumerate(axes) if index is not None}
        for name, axes in keep.items()
        if name not in saved and any(index is not None for index in axes)
    }


def _norms(channels: Channels, gone: np.ndarray) -> dict[str, dict[str, int]]:
    """Norms whose statistics are those of more channels than they have left."""
    atoms, found = channels.gone(gone), {}
    modules = dict(channels.net.named_modules())
    for mix in channels.reading.mixes:
        op = channels.recording.ops[mix.op]
        full = channels.recording.shapes[mix.tensor][mix.axis]
        module = modules.get(op.module)
        if channels.foretold(mix.tensor, atoms)[mix.axis] == full or not correctable(module):
            continue
        if op.name != "linalg_vector_norm" and not hasattr(module, "full"):
            calls = channels.recording.calls.get(op.module, [])
            given = {n for _, tensors in calls for n in tensors}
            last = op.name != "native_layer_norm" or mix.tensor in given
            found[op.module] = {"full": full, "axis": -1 if last else 1}
    return found


def _unfused(channels: Channels, gone: np.ndarray) -> set[str]:
    """Modules whose fused attention would take its scale from the dimensions that are left."""
    atoms, found = channels.gone(gone), set()
    modules = dict(channels.net.named_modules())
    for product in channels.reading.products:
        number, axis = product.left
        op = channels.recording.ops[product.op]
        if hasattr(modules.get(op.module), "fused_attn") and number not in channels.reading.known:
            old = channels.recording.shapes[number][axis]
            if channels.foretold(number, atoms)[axis] != old:
                found.add(op.module)
    return found


def _cut_tensors(
    net: nn.Module, keep: dict[str, list[np.ndarray | None]], optimizer: Optimizer | None
) -> None:
    modules = dict(net.named_modules())
    shared: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in modules.values():
        for leaf, parameter in module.named_parameters(recurse=False):
            shared.setdefault(id(parameter), []).append((module, leaf))
    for name, axes in keep.items():
        owner, _, leaf = name.rpartition(".")
        module = modules[owner]
        index = [(a, torch.from_numpy(i)) for a, i in enumerate(axes) if i is not None]
        if not index:
            continue
        beside = LIKE_WEIGHT[1:] if leaf == "weight" and isinstance(module, Masked) else ()
        for part in (leaf, *beside):
            tensor = getattr(module, part, None)
            if tensor is None:
                continue
            owners = shared.get(id(tensor), [(module, part)])
            new = _select(tensor, index, optimizer)
            for other, key in owners:
                setattr(other, key, new)


def _select(tensor: Tensor, index: list[tuple[int, Tensor]], optimizer: Optimizer | None) -> Tensor:
    new = _part(tensor, index)
    if isinstance(tensor, nn.Parameter):
        parameter = nn.Parameter(new, requires_grad=tensor.requires_grad)
        if optimizer is not None:
            _replace(optimizer, tensor, parameter, index)
        return parameter
    return new


def _part(tensor: Tensor, index: list[tuple[int, Tensor]]) -> Tensor:
    """Some rows and columns, in the tensor's memory format."""
    part = tensor.detach()
    for axis, kept in index:
        part = part.index_select(axis, kept.to(tensor.device))
    last = torch.channels_last
    if tensor.ndim == 4 and tensor.is_contiguous(memory_format=last) and not tensor.is_contiguous():
        return part.contiguous(memory_format=last)
    return part.contiguous()


def _replace(
    optimizer: Optimizer, old: nn.Parameter, new: nn.Parameter, index: list[tuple[int, Tensor]]
) -> None:
    for group in optimizer.param_groups:
        group["params"] = [new if p is old else p for p in group["params"]]
    if old in optimizer.state:
        state = optimizer.state.pop(old)
        optimizer.state[new] = {
            key: _part(value, index)
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
    for name, layer in net.named_modules():
        if not isinstance(layer, LAYERS) or channels.untraced:
            continue
        empty = int((~constant_values.used(layer, train=False).any(1)).sum())
        if empty:
            why = channels.why.get(name) or alive
            size = layer.weight.shape[0]
            found[name] = f"{empty} of {size} outputs are empty and stay: {why}"
    return found
