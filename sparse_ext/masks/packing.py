# SPDX-License-Identifier: MIT
"""What only training needs of a sparse layer, as checkpoints hold it: bits, and no zeros.

Eight mask bits make a byte. Of a shadow only the entries of pruned weights are kept, of an
optimizer's state those of kept ones, in logical order; all others are zero. A running mean of
gradients that no update will read is left out; of one that is kept the first bytes, exponents that
are much alike, are compressed. For files that are to be compressed as a whole (`checkpoint.pack`)
numbers are taken apart into planes instead, all first bytes, all second bytes, and so on. Nothing
is rounded.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solo.errors import CheckpointError
from sparse_ext.masks import files

PACKED = "_packed"  # behind the name of a buffer
_MASK = f".mask{PACKED}"
_FLOATS = {4: torch.float32, 8: torch.float64}  # by bytes; others are not taken apart


def pack_(
    state: dict[str, Any], layers: Iterable[str], scores: bool = True, planes: bool = False
) -> None:
    """Replace the masks, shadows and scores of a state dict by their packed forms, in place.

    Args:
        state: of a module.
        layers: names of its masked layers.
        scores: whether scores will be read again; otherwise they come back as zeros.
        planes: take numbers apart.
    """
    for layer in layers:
        mask = state.pop(f"{layer}.mask")
        shadow, score = state.pop(f"{layer}.shadow", None), state.pop(f"{layer}.score", None)
        state[f"{layer}{_MASK}"] = files.pack(mask)
        if shadow is not None:
            state[f"{layer}.shadow{PACKED}"] = _apart(_chosen(shadow, ~mask), planes)
        if score is not None:
            kept = score.flatten() if scores else score.new_empty(0)
            packed = _apart(kept, planes) if planes else _short(kept)
            state[f"{layer}.score{PACKED}"] = packed


def unpack_masks_(state: dict[str, Any]) -> None:
    """Replace the bits of all masks in a state dict by the masks, in place.

    Raises:
        CheckpointError: a mask has no weight of its size.
    """
    for key in [key for key in state if key.endswith(_MASK)]:
        unpack_mask_(state, key.removesuffix(_MASK.removeprefix(".")))


def unpack_mask_(state: dict[str, Any], prefix: str) -> None:
    """Replace the bits of one layer's mask, if it has any, by the mask, in place.

    Args:
        state: a state dict.
        prefix: of the layer's keys.

    Raises:
        CheckpointError: there is no weight of its size.
    """
    bits, weight = state.pop(f"{prefix}mask{PACKED}", None), state.get(f"{prefix}weight")
    if bits is None:
        return
    if not isinstance(weight, Tensor) or not _are_bits(bits, weight):
        raise CheckpointError(
            f"'{prefix}mask{PACKED}' has no bit for each weight beside it: weights and masks come "
            "from different files. Take the checkpoint before it."
        )
    state[f"{prefix}mask"] = files.unpack(bits.cpu(), tuple(weight.shape)).to(weight.device)


def _are_bits(bits: Any, weight: Tensor) -> bool:
    if not isinstance(bits, Tensor) or bits.dtype != torch.uint8:
        return False
    return bits.shape == (-(-weight.numel() // 8),)


def unpack_(state: dict[str, Any], prefix: str) -> None:
    """Replace the packed forms of one layer by what they were made of, in place.

    Args:
        state: a state dict, with masks.
        prefix: of the layer's keys.

    Raises:
        CheckpointError: the shadow belongs to another mask.
    """
    for name in ("shadow", "score"):
        packed = state.pop(f"{prefix}{name}{PACKED}", None)
        if packed is None:
            continue
        mask = state[f"{prefix}mask"].to(packed.device)
        held = ~mask if name == "shadow" else torch.ones_like(mask)
        count = int(held.count_nonzero())
        values = _joined(packed, count)
        if len(values) not in (count, 0 if name == "score" else count):
            raise CheckpointError(
                f"'{prefix}{name}' has values of {len(values)} weights, not of {count}: the file "
                f"has lost its masks, or they were edited. Take the checkpoint before it."
            )
        full = values.new_zeros(mask.shape)
        state[prefix + name] = full.masked_scatter_(held, values) if len(values) else full


def pack_states_(
    states: dict[Any, Any], masks: Mapping[Any, Tensor], planes: bool = False
) -> dict[Any, list[str]]:
    """Keep of an optimizer's state only the entries of kept weights, in place; others are zero.

    Args:
        states: of the optimizer, by the index of a parameter.
        masks: of those parameters that have one.
        planes: take numbers apart.

    Returns:
        names of the tensors that were packed, by the same index.
    """
    packed: dict[Any, list[str]] = {}
    for index, mask in masks.items():
        own = dict(states.get(index, {}))
        packed[index] = [
            name
            for name, value in own.items()
            if isinstance(value, Tensor) and value.shape == mask.shape
        ]
        for name in packed[index]:
            own[name] = _apart(_chosen(own[name], mask.to(own[name].device)), planes)
        states[index] = own
    return packed


def unpack_states_(
    states: dict[Any, Any], masks: Mapping[Any, Tensor], packed: Mapping[Any, list[str]]
) -> None:
    """Inverse of `pack_states_`, given what it returned."""
    for index, names in packed.items():
        for name in names:
            mask = masks[index].to(states[index][name].device)
            values = _joined(states[index][name], int(mask.count_nonzero()))
            states[index][name] = values.new_zeros(mask.shape).masked_scatter_(mask, values)


def _chosen(values: Tensor, mask: Tensor) -> Tensor:
    """(n,) entries of `values` where the mask is, in logical order."""
    if values.device.type != "cpu" or values.dtype not in _FLOATS.values():
        return values.masked_select(mask)
    flat = values.detach().reshape(-1).numpy()  # numpy takes a fifth of the time
    found = np.compress(mask.reshape(-1).numpy(), flat)
    return torch.from_numpy(found) if len(found) else values.new_empty(0)


def _apart(values: Tensor, planes: bool) -> Tensor:
    """(n,) numbers, as (n * size,) bytes, plane by plane, where `planes` asks for it."""
    if not planes or values.dtype not in _FLOATS.values():
        return values
    return values.view(torch.uint8).view(-1, values.element_size()).t().reshape(-1)


def _short(values: Tensor) -> Tensor:
    """(n,) numbers, as fewer than 4n bytes if the compressed plane of first bytes is shorter."""
    if values.dtype != torch.float32:
        return values
    numbers = values.detach().cpu().numpy()
    coder = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS, 9, zlib.Z_HUFFMAN_ONLY)
    lower, third, first = _parts(numbers)
    content = coder.compress(first.tobytes()) + coder.flush()
    if len(content) >= len(numbers):
        return values
    parts = (lower.view(np.uint8), third, np.frombuffer(content, np.uint8))
    return torch.from_numpy(np.concatenate(parts))


def _parts(numbers: np.ndarray) -> tuple[np.ndarray, ...]:
    """Of (n,) float32: the lower halves, the third bytes, and the first: sign and exponent."""
    octets = numbers.view(np.uint8)
    return numbers.view(np.uint16)[::2].copy(), octets[2::4].copy(), octets[3::4].copy()


def _long(content: np.ndarray, count: int) -> Tensor:
    """Inverse of `_short` for so many numbers.

    Raises:
        CheckpointError: it is damaged.
    """
    first = _inflated(content[3 * count :].tobytes(), count)
    numbers = np.empty(count, np.float32)
    octets = numbers.view(np.uint8)
    numbers.view(np.uint16)[::2] = content[: 2 * count].view(np.uint16)
    octets[2::4], octets[3::4] = content[2 * count : 3 * count], np.frombuffer(first, np.uint8)
    return torch.from_numpy(numbers)


def _inflated(content: bytes, count: int) -> bytes:
    try:
        found = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, count)
    except zlib.error:
        found = b""
    if len(found) != count:
        raise CheckpointError(
            f"a score of {count} weights is damaged: take the checkpoint before it"
        )
    return found


def _joined(values: Tensor, count: int) -> Tensor:
    """Inverse of `_apart` and `_short` for so many numbers."""
    if values.dtype == torch.uint8 and 3 * count < len(values) < 4 * count:
        return _long(values.cpu().numpy(), count).to(values.device)
    size = len(values) // max(1, count)
    if values.dtype != torch.uint8 or size not in _FLOATS:
        return values.float() if values.dtype == torch.uint8 else values
    return values.view(size, -1).t().contiguous().view(-1).view(_FLOATS[size])
