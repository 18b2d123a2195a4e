# SPDX-License-Identifier: MIT
"""Masked convolutions that skip their pruned blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from solo.compat import writes
from solo.errors import ConfigError
from sparse_ext.compat import unwrapped
from sparse_ext.kernels.function import backend_of, block_conv2d
from sparse_ext.kernels.plan import Plan, Window
from sparse_ext.masks.masked_layers import Masked, MaskedConv2d

MIN_SPARSITY = 0.75  # of blocks; below, the dense convolution is as fast


class BlockConv2d(MaskedConv2d):
    """A masked convolution that computes its kept 8x8 blocks; made by `use_block_kernel`.

    Same weight, mask and state as before. It takes torch's dense convolution, with the same
    result, where the kernel is no use: fewer than `min_sparsity` of the blocks are pruned, the
    input is not float32 on the CPU, autocast is on, or the model is being compiled or traced.

    Attributes:
        backend: `compiled` or `reference`.
        min_sparsity: share of pruned blocks from which the kernel is used.
        dense_gradient: whether pruned weights get their gradient too, at the dense price.
    """

    backend: str
    min_sparsity: float
    dense_gradient: bool

    def forward(self, input: Tensor) -> Tensor:
        if not self._takes(input):
            return super().forward(input)
        plan = self.plan()
        if plan.sparsity < self.min_sparsity:
            return super().forward(input)
        rest = (plan, self.backend, self.dense_gradient)
        return block_conv2d(input, self.weight, self.bias, *rest)

    def plan(self) -> Plan:
        """The kept blocks, listed anew whenever the mask buffer was written or replaced."""
        mask, cached = self.mask, self.__dict__.get("_plan")
        if mask.is_inference():  # writes to it are not counted
            return Plan(mask, window_of(self))
        if cached is None or cached[0] is not mask or cached[1] != writes(mask):
            cached = self.__dict__["_plan"] = (mask, writes(mask), Plan(mask, window_of(self)))
        return cached[2]

    def _takes(self, x: Tensor) -> bool:
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return False
        fits = x.dim() == 4 and x.shape[1] == self.in_channels and x.numel() > 0
        if not fits or x.device.type != "cpu" or self.weight.device.type != "cpu":
            return False
        if x.dtype != torch.float32 or self.weight.dtype != torch.float32:
            return False
        if torch.is_autocast_enabled("cpu"):
            return False
        return min(window_of(self).output_size(x.shape[2:], _pair(self.kernel_size))) > 0

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles list their blocks anew."""
        return {key: value for key, value in self.__dict__.items() if key != "_plan"}


def window_of(conv: nn.Conv2d) -> Window:
    """How a convolution moves over its input."""
    return Window(_pair(conv.stride), _pair(conv.padding), _pair(conv.dilation))


def _pair(values: Any) -> tuple[int, int]:
    return int(values[0]), int(values[1])


def obstacle(conv: nn.Conv2d) -> str:
    """Why the kernel cannot compute this convolution; an empty string if it can."""
    if conv.groups != 1:
        return f"{conv.groups} channel groups"
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return f"padding {conv.padding!r} of mode '{conv.padding_mode}'"
    return ""


def use_block_kernel(
    module: nn.Module, backend: str = "compiled", min_sparsity: float = MIN_SPARSITY
) -> list[str]:
    """Make the masked convolutions of `module` skip pruned 8x8 blocks on the CPU, in place.

    Until told otherwise (`needs_dense_gradients`) pruned weights keep getting their gradient, as
    in any masked layer.

    Args:
        module: an encoder with masks, compiled or not.
        backend: `compiled`, or `reference` (slow, needs no compiler).
        min_sparsity: share of pruned blocks from which a layer uses the kernel; looked at again
            whenever its mask changes.

    Returns:
        names of the layers that were changed.

    Raises:
        ConfigError: no layer qualifies, or an argument is wrong.
        KernelBuildError: the kernel cannot be compiled; nothing was changed.
    """
    if not 0 <= min_sparsity <= 1:
        raise ConfigError(f"min_sparsity={min_sparsity} is no share in [0, 1].")
    found = unwrapped(module).named_modules()
    layers: dict[str, Any] = {n: m for n, m in found if type(m) in _SWAPPED}
    able = {n: m for n, m in layers.items() if not obstacle(m)}
    if not able:
        why = "; ".join(f"'{n}': {obstacle(m)}" for n, m in layers.items())
        raise ConfigError(
            "No layer can use the block kernel: it takes masked convolutions (nn.Conv2d of a "
            f"sparse encoder) {f'without {why}' if why else 'and there are none'}. Make the "
            "encoder sparse first, with granularity block8."
        )
    if backend_of(backend).__name__.endswith("compiled"):
        from sparse_ext.kernels.build import library

        library()
    for layer in able.values():
        layer.__class__ = BlockConv2d
        layer.backend, layer.min_sparsity = backend, min_sparsity
        layer.dense_gradient = True
    return list(able)


_SWAPPED = (MaskedConv2d, BlockConv2d)


def use_dense_kernel(module: nn.Module) -> None:
    """Give layers their dense convolution back, in place; undoes `use_block_kernel`."""
    for layer in _block_layers(module):
        layer.__class__ = MaskedConv2d  # type: ignore[assignment]
        for name in ("backend", "min_sparsity", "dense_gradient", "_plan"):
            layer.__dict__.pop(name, None)


def needs_dense_gradients(module: nn.Module, needed: bool) -> None:
    """Say whether anyone looks at the gradients of pruned weights (regrowth does).

    Otherwise the weight gradient is computed for kept blocks only.
    """
    for layer in unwrapped(module).modules():
        if isinstance(layer, Masked) and hasattr(layer, "dense_gradient"):
            layer.dense_gradient = needed  # type: ignore[assignment]


def _block_layers(module: nn.Module) -> list[BlockConv2d]:
    return [m for m in unwrapped(module).modules() if isinstance(m, BlockConv2d)]
