# SPDX-License-Identifier: MIT
"""Units are cut out of networks: tensors, optimizer state, and what modules say of their widths."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparse_ext.masks.channels import attention, widths
from sparse_ext.masks.channels.norms import correctable
from sparse_ext.masks.channels.tracing import Channels
from sparse_ext.masks.channels.widths import LIKE_WEIGHT
from sparse_ext.masks.masked_layers import Masked


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
