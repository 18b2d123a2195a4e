# SPDX-License-Identifier: MIT
"""Putting the kernel into an encoder, and taking it out again."""

from __future__ import annotations

from typing import Any

from torch import nn

from solo.errors import ConfigError, did_you_mean
from sparse_ext.compat import unwrapped
from sparse_ext.kernels.element import blocks, choice
from sparse_ext.kernels.element.layers import (
    ElementConv2d,
    ElementLayer,
    ElementLinear,
    LaneConv2d,
)
from sparse_ext.kernels.element.norm import LaneBatchNorm2d
from sparse_ext.kernels.layer import obstacle
from sparse_ext.masks.masked_layers import MaskedConv2d, MaskedLinear

KERNELS = ("auto", "element")
_SWAPPED: dict[type, type] = {
    MaskedConv2d: ElementConv2d,
    MaskedLinear: ElementLinear,
    nn.Conv2d: LaneConv2d,
    nn.BatchNorm2d: LaneBatchNorm2d,
}
_PLAIN = {new: old for old, new in _SWAPPED.items()}
_OWN = (
    "kernel",
    "dense_gradient",
    "dense_share",
    "used",
    "around",
    "frozen",
    "_plan",
    "_known",
    "_folded",
)


def use_element_kernel(module: nn.Module, kernel: str = "auto", later: bool = False) -> list[str]:
    """Make the masked layers of `module` compute their kept weights only, on the CPU, in place.

    Batch norms, residual blocks of torchvision's ResNets and dense convolutions follow in the same
    layout. Weights, masks and the state dict are the same as before, and so are results, but for
    the order of sums. Until told otherwise (`needs_dense_gradients`) pruned weights keep getting
    their gradient, at the dense price.

    Args:
        module: an encoder with masks, compiled or not.
        kernel: `auto` measures for every layer whether the kernel is faster than torch's dense
            one, looked at again whenever its mask changes; `element` always takes the kernel.
        later: compile the kernel, if that has not been done here, when the first layer computes
            something with it, and go on densely if that fails; otherwise compile it now.

    Returns:
        names of the masked layers that were changed.

    Raises:
        ConfigError: no layer qualifies, or an argument is wrong.
        KernelBuildError: the kernel cannot be compiled; nothing was changed. Not with
            `later`: then one line says so, and layers stay dense.
    """
    if kernel not in KERNELS:
        raise ConfigError(f"kernel={kernel!r} is none. {did_you_mean(kernel, KERNELS)}")
    net = unwrapped(module)
    found: dict[str, Any] = {n: m for n, m in net.named_modules() if type(m) in _MASKED}
    able = {n: m for n, m in found.items() if not _obstacle(m)}
    if not able:
        why = "; ".join(f"'{n}': {_obstacle(m)}" for n, m in found.items())
        raise ConfigError(
            "No layer can use the element-wise kernel: it takes masked convolutions and linear "
            f"layers {f'without {why}' if why else 'and there are none'}. Make the encoder sparse "
            "first."
        )
    if not later:
        choice.wait()
    for layer in net.modules():
        if type(layer) in _SWAPPED and not _obstacle(layer):
            layer.__class__ = _SWAPPED[type(layer)]
    layers = element_layers(net)
    masked = tuple(layer for layer in layers if not isinstance(layer, LaneConv2d))
    for layer in layers:
        layer.kernel = kernel
        if isinstance(layer, LaneConv2d):
            layer.__dict__["around"] = masked
    blocks.fuse(net)
    return list(able)


_MASKED = (MaskedConv2d, MaskedLinear, ElementConv2d, ElementLinear)


def _obstacle(layer: nn.Module) -> str:
    return obstacle(layer) if isinstance(layer, nn.Conv2d) else ""


def use_plain_layers(module: nn.Module) -> None:
    """Undo `use_element_kernel`, in place."""
    net = unwrapped(module)
    blocks.unfuse(net)
    for layer in net.modules():
        if type(layer) in _PLAIN:
            layer.__class__ = _PLAIN[type(layer)]
            for name in _OWN:
                layer.__dict__.pop(name, None)


def element_layers(module: nn.Module) -> list[ElementLayer]:
    """Its layers with the kernel."""
    return [m for m in unwrapped(module).modules() if isinstance(m, ElementLayer)]
