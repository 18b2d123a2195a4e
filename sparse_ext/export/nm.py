# SPDX-License-Identifier: MIT
"""N:M encoders for hardware that multiplies them: checks, and torch's semi-structured linears."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from solo.errors import CheckpointError, ConfigError
from sparse_ext.masks.granularity import NM, parse

OUTPUTS, INPUTS = 8, 16  # multiples that tensor cores want of a layer's channels (ASP)


@dataclass(frozen=True)
class NMReport:
    """Which layers of an encoder follow an N:M pattern and which do not.

    Attributes:
        pattern: such as 2:4.
        layers: names of those that do.
        hardware: those whose channels tensor cores take as well.
    """

    pattern: str
    layers: tuple[str, ...]
    hardware: tuple[str, ...]


def check_nm(state: Mapping[str, Tensor], pattern: str = "2:4") -> NMReport:
    """Check that every masked layer of a state dict has at most N non-zeros in each group of M.

    Weights are looked at, not only masks: hardware sees the weights.

    Args:
        state: an encoder's, with masks.
        pattern: N:M.

    Raises:
        ConfigError: `pattern` is no N:M.
        CheckpointError: there are no masks, or a layer breaks the pattern; names the first group.
    """
    from sparse_ext.export.strip import masked_weights

    granularity = parse(pattern)
    if not isinstance(granularity, NM):
        raise ConfigError(f"pattern={pattern!r} is no N:M pattern, such as 2:4.")
    masks = masked_weights(state)
    if not masks:
        raise CheckpointError("This encoder has no masks, so no layer of it is N:M.")
    for key, mask in masks.items():
        _check_layer(key.removesuffix(".weight"), state[key].masked_fill(~mask, 0), granularity)
    names = [key.removesuffix(".weight") for key in masks]
    fit = [n for n in names if tensor_core(tuple(state[f"{n}.weight"].shape))]
    return NMReport(str(granularity), tuple(names), tuple(fit))


def tensor_core(shape: tuple[int, ...]) -> bool:
    """Whether tensor cores take a layer of that weight shape sparse (ASP's rule)."""
    return shape[0] % OUTPUTS == 0 and shape[1] % INPUTS == 0


def _check_layer(name: str, weight: Tensor, pattern: NM) -> None:
    if weight.shape[1] % pattern.m:
        raise CheckpointError(
            f"'{name}' has {weight.shape[1]} inputs, not a multiple of {pattern.m}: it cannot be "
            f"{pattern}. Export it dense or packed."
        )
    counts = pattern.view(weight).count_nonzero(dim=1)
    bad = (counts > pattern.keeps).nonzero()[:, 0]
    if len(bad):
        raise CheckpointError(
            f"'{name}' is not {pattern}: {len(bad)} of {len(counts)} groups have more than "
            f"{pattern.keeps} non-zeros (group {int(bad[0])} has {int(counts[bad[0]])}). Train "
            f"with sparse.granularity={pattern} and sparse.final=1, to the end of the ramp."
        )


def semi_structured(net: nn.Module, half: torch.dtype = torch.float16) -> list[str]:
    """Turn the 2:4 linear layers of `net` into torch's semi-structured form, in place.

    For inference on an NVIDIA GPU from Ampere on. Convolutions stay dense: PyTorch has no sparse
    kernel for them. Whether it is faster depends on the sizes; measure it.

    Args:
        net: with masks; on the GPU. It becomes `half`.
        half: float16 or bfloat16.

    Returns:
        names of the layers.

    Raises:
        ConfigError: there is no such GPU, or no such layer.
    """
    device = next(net.parameters()).device
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        raise ConfigError(
            f"2:4 linear layers run on NVIDIA GPUs from compute capability 8.0 on, and this "
            f"encoder is on '{device}'. On other devices use it as it is, or slim it."
        )
    pattern = NM(2, 4)
    found = [
        name
        for name, layer in net.named_modules()
        if isinstance(layer, nn.Linear)
        and layer.weight.shape[0] % 32 == 0
        and layer.weight.shape[1] % 64 == 0
        and pattern.satisfied(layer.weight.detach())
    ]
    if not found:
        raise ConfigError(
            "No linear layer of this encoder is 2:4 with outputs in multiples of 32 and inputs in "
            "multiples of 64: train a ViT with sparse.granularity=2:4 and sparse.final=1."
        )
    net.to(half)
    for name in found:
        layer: Any = net.get_submodule(name)
        compressed = torch.sparse.to_sparse_semi_structured(layer.weight.detach())
        layer.weight = nn.Parameter(compressed, requires_grad=False)
    return found
