# SPDX-License-Identifier: MIT
"""The widths of a slimmed network: read from its weights, given to a full one before it loads."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from solo.errors import CheckpointError
from sparse_ext.compat import BatchNorm, ConvNd
from sparse_ext.masks.channels.norms import correct
from sparse_ext.masks.masked_layers import MaskedConv2d, MaskedLinear

if TYPE_CHECKING:
    from sparse_ext.masks.channels.tracing import Channels

LAYERS = (nn.Conv2d, nn.Linear, MaskedConv2d, MaskedLinear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
MARK = "slim"  # a buffer of a slimmed network: its widths are those of its weights
LIKE_WEIGHT = ("weight", "mask", "shadow", "score")
PER_CHANNEL = ("weight", "bias", "running_mean", "running_var")
_COUNTS = re.compile(r"head|dim|channel|embed|feature|width|planes|group|hidden|cardinality|chs")


def attributes(channels: Channels, units: np.ndarray) -> dict[str, dict[str, Any]]:
    """What modules must be told when units go: `groups`, `num_heads`, `head_dim` and the like.

    Layers and norms know their own; of other modules those integers count whose name says that
    they are a number of heads, channels or dimensions, and whose value is that of a dimension that
    one of the module's views has.
    """
    gone = channels.gone(units)
    modules = dict(channels.net.named_modules())
    found: dict[str, dict[str, Any]] = {}
    sizes: dict[str, dict[int, list[_Size]]] = {}
    for op in channels.recording.ops:
        module = modules.get(op.module)
        if op.name == "convolution" and isinstance(module, ConvNd) and module.groups > 1:
            old = channels.recording.shapes[op.args[1].number]
            weight = channels.foretold(op.args[1].number, gone)
            data = channels.foretold(op.args[0].number, gone)
            if weight != old:
                found[op.module] = {"groups": data[1] // weight[1]}
        elif op.name == "native_group_norm" and isinstance(module, nn.GroupNorm):
            now = channels.foretold(op.args[0].number, gone)[1]
            if now != module.num_channels:
                groups = now * module.num_groups // module.num_channels
                found[op.module] = {"num_channels": now, "num_groups": max(1, groups)}
        elif op.name == "native_layer_norm" and isinstance(module, nn.LayerNorm):
            width = channels.foretold(op.args[0].number, gone)[-1:]
            if len(module.normalized_shape) == 1 and width != tuple(module.normalized_shape):
                found[op.module] = {"normalized_shape": width}
        elif op.name in _SHAPED and not isinstance(module, _OWN):
            _note(channels, op, gone, sizes.setdefault(op.module, {}))
    for name, known in sizes.items():
        changes = _counts(modules[name], known)
        if changes:
            found.setdefault(name, {}).update(changes)
    return found


_SHAPED = {"view", "_unsafe_view", "reshape", "expand", "unflatten", "split_with_sizes", "flatten"}
_OWN = (ConvNd, nn.Linear, BatchNorm, nn.LayerNorm, nn.GroupNorm)


class _Size(NamedTuple):
    """A dimension that a view makes: its new size, what it is, whether it is told apart here."""

    now: int
    head: bool
    split: bool


def _note(channels: Channels, op: Any, gone: np.ndarray, sizes: dict) -> None:
    """Old and new sizes of the dimensions that a view makes."""
    source = op.args[0].number
    known = sum(d is not None for d in channels.reading.dims.get(source, ()))
    for number in op.outs:
        shape, now = channels.recording.shapes[number], channels.foretold(number, gone)
        dims = channels.reading.dims.get(number, ())
        pairs = [(n, m, d) for n, m, d in zip(shape, now, dims, strict=False) if d is not None]
        split = len(pairs) > known
        for n, m, dim in pairs:
            head = int(channels.solution.kinds[channels.solution.label[dim[0, 0]]]) == 3
            sizes.setdefault(n, []).append(_Size(m, head, split))
            if n % 2 == 0 and m % 2 == 0 and _twice(channels, dim):
                sizes.setdefault(n // 2, []).append(_Size(m // 2, head, split))
        for (a, b, _), (c, d, _) in itertools.pairwise(pairs):
            sizes.setdefault(a * c, []).append(_Size(b * d, False, False))


def _twice(channels: Channels, dim: np.ndarray) -> bool:
    """Whether both halves are the same units: a batch of two, merged with heads."""
    label = channels.solution.label[dim]
    half = len(label) // 2
    return bool((label[:half] == label[half:]).all())


def _counts(module: nn.Module, sizes: Mapping[int, list[_Size]]) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for name, value in vars(module).items():
        if isinstance(value, tuple) and name == "shape":  # of a scale per channel
            now = [{s.now for s in sizes.get(v, [])} or {v} for v in value]
            if all(len(known) == 1 for known in now):
                changes[name] = tuple(known.pop() for known in now)
        elif type(value) is int and value in sizes and _COUNTS.search(name):
            now_ = _likeliest(sizes[value], "head" in name and "dim" not in name)
            if now_ not in (None, value):
                changes[name] = now_
    return changes


def _likeliest(sizes: list[_Size], head: bool) -> int | None:
    """The one new size, of heads or not; where dimensions are told apart the first one counts."""
    right = [s for s in sizes if s.head == head] or sizes
    split = [s.now for s in right if s.split]
    if split:
        return split[0]
    return right[0].now if len({s.now for s in right}) == 1 else None


def tell(net: nn.Module, about: Mapping[str, Any]) -> None:
    """Tell the modules of a network that has just been cut, and leave a note of it.

    Args:
        net: with the tensors that it has now.
        about: `attributes` by module, `norms` with the statistics of more channels, and modules
            whose fused attention is `switched` off; what stays of `buffers` that no file holds.
    """
    note = read_note(getattr(net, MARK, None))
    for key in ("attributes", "norms"):
        for name, values in about[key].items():
            note[key].setdefault(name, {}).update(values)
    for name, axes in about["buffers"].items():
        known = note["buffers"].setdefault(name, {})
        for axis, index in axes.items():
            known[axis] = [known[axis][i] for i in index] if axis in known else index
    note["switched"] = sorted({*note["switched"], *about["switched"]})
    apply_note(net, note)
    raw = torch.frombuffer(bytearray(json.dumps(note).encode()), dtype=torch.uint8).clone()
    device = next((p.device for p in net.parameters()), raw.device)
    net.register_buffer(MARK, raw.to(device))


def read_note(mark: Tensor | None) -> dict[str, Any]:
    """What a slimmed network's buffer says; empty for one of an older version."""
    empty: dict[str, Any] = {"attributes": {}, "norms": {}, "switched": [], "buffers": {}}
    if mark is None or mark.dtype is not torch.uint8:
        return empty
    return empty | json.loads(bytes(mark.cpu().tolist()).decode())


def apply_note(net: nn.Module, note: Mapping[str, Any]) -> None:
    """Give modules the attributes that go with their tensors."""
    for name, values in note["attributes"].items():
        fitting = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        set_attributes(net, {name: fitting})
    for name in note["switched"]:
        net.get_submodule(name).fused_attn = False  # type: ignore[assignment]
    for name, values in note["norms"].items():
        correct(net.get_submodule(name), values)
    for module in net.modules():
        _declare_all(module)


@contextlib.contextmanager
def changed(net: nn.Module, changes: Mapping[str, Mapping[str, Any]]) -> Iterator[None]:
    """A network with other attributes for a while."""
    before = {
        (name, key): getattr(net.get_submodule(name), key)
        for name, values in changes.items()
        for key in values
    }
    set_attributes(net, changes)
    try:
        yield
    finally:
        for (name, key), value in before.items():
            setattr(net.get_submodule(name), key, value)


def set_attributes(net: nn.Module, changes: Mapping[str, Mapping[str, Any]]) -> None:
    """Give modules those attributes."""
    for name, values in changes.items():
        for key, value in values.items():
            setattr(net.get_submodule(name), key, value)


def declare(layer: Any) -> None:
    """Write the weight's shape into a layer's attributes."""
    outputs, columns = layer.weight.shape[:2]
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = outputs, columns
    else:
        layer.out_channels, layer.in_channels = outputs, columns * layer.groups


def resize_(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give the modules of `net` the widths that a slimmed network's `state` has, in place.

    Raises:
        CheckpointError: a shape that slimming cannot have made of the present one.
    """
    note = read_note(state.get(MARK))
    if note != read_note(None):
        from sparse_ext.masks.channels import attention

        switched = {net.get_submodule(name) for name in note["switched"]}
        attention.restore_switches(attention.adapt(net), switched)
    for name, module in list(net.named_modules()):
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for leaf, tensor in tensors:
            key = f"{name}.{leaf}" if name else leaf
            wanted = state.get(key)
            if wanted is None and leaf in LIKE_WEIGHT:  # checkpoints hold it packed
                wanted = state.get(f"{name}.weight")
            if key == MARK or wanted is None or tensor.shape == wanted.shape:
                continue
            kernel = isinstance(module, ConvNd) and leaf in LIKE_WEIGHT
            if tensor.ndim != wanted.ndim or any(
                w > t or (w != t and kernel and dim > 1)
                for dim, (w, t) in enumerate(zip(wanted.shape, tensor.shape, strict=True))
            ):
                raise CheckpointError(
                    f"'{key}' has shape {tuple(wanted.shape)} in the slim file and "
                    f"{tuple(tensor.shape)} in the full network: it was slimmed from another "
                    f"architecture. Set backbone.name and backbone.kwargs as in training."
                )
            _resize_one(module, leaf, tensor, wanted.shape)
    for name, axes in note["buffers"].items():
        owner, _, leaf = name.rpartition(".")
        buffer = net.get_buffer(name)
        for axis, index in axes.items():
            buffer = buffer.index_select(int(axis), torch.tensor(index, device=buffer.device))
        setattr(net.get_submodule(owner), leaf, buffer)
    apply_note(net, note)
    mark = state.get(MARK)
    net.register_buffer(MARK, torch.tensor(True) if mark is None else mark.detach().clone())


def _resize_one(module: nn.Module, key: str, tensor: Tensor, shape: torch.Size) -> None:
    new = tensor.detach()[tuple(slice(n) for n in shape)].clone(memory_format=torch.preserve_format)
    if isinstance(tensor, nn.Parameter):
        new = nn.Parameter(new, requires_grad=tensor.requires_grad)
    setattr(module, key, new)


def _declare_all(module: Any) -> None:
    if isinstance(module, (nn.Linear, ConvNd)) and module.weight.ndim > 1:
        declare(module)
    elif isinstance(module, BatchNorm):
        known = [t for t in (module.weight, module.running_mean) if t is not None]
        module.num_features = known[0].numel() if known else module.num_features
