# SPDX-License-Identifier: MIT
"""Convolution and linear layers that carry a mask.

Made from existing modules by swapping their class: same weight key, same values, one more buffer
`mask` (bool, 1 = kept, in the weight's memory format). The forward pass is the plain dense one,
because pruned weights are *stored* as zero. Autograd then gives the dense gradient at pruned
positions, which regrowth needs; `weight * mask` in the forward pass would set it to zero.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from solo.errors import ConfigError
from sparse_ext.compat import unwrapped


class Masked(nn.Module):
    """What the masked layers share; the owner of a `weight` and of the buffer `mask`."""

    weight: Tensor
    mask: Tensor

    @torch.no_grad()
    def apply_mask(self) -> None:
        """Set pruned weights to zero, in place (exactly zero, also where they were NaN)."""
        self.weight.masked_fill_(~self.mask, 0)

    def extra_repr(self) -> str:
        """The plain layer's line, with the measured density."""
        density = self.mask.count_nonzero().item() / max(1, self.mask.numel())
        return f"{super().extra_repr()}, density={density:.4f}"


class MaskedConv2d(Masked, nn.Conv2d):
    """A convolution with stored zeros; made by `mask_module`."""


class MaskedLinear(Masked, nn.Linear):
    """A linear layer with stored zeros; made by `mask_module`."""


MASKED_TYPES: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: MaskedConv2d,
    nn.Linear: MaskedLinear,
    NonDynamicallyQuantizableLinear: MaskedLinear,  # the output of nn.MultiheadAttention
}


def mask_module(module: nn.Module) -> nn.Module:
    """Turn a plain `nn.Conv2d` or `nn.Linear` into its masked form, in place, with a full mask.

    Only exact types qualify: a subclass may compute its weight from the stored one (weight
    standardisation does), and then a stored zero is no zero.

    Returns:
        the same object, with another class.

    Raises:
        ConfigError: for any other type of module.
    """
    if isinstance(module, Masked):
        raise ConfigError(f"This {type(module).__name__} has a mask already.")
    if maker := computes_weight(module):
        raise ConfigError(f"Cannot mask this {type(module).__name__}: {maker} computes its weight.")
    if type(module) not in MASKED_TYPES:
        raise ConfigError(
            f"Cannot mask a {type(module).__name__}: only plain "
            f"{' and '.join(t.__name__ for t in MASKED_TYPES)} layers can be masked."
        )
    module.__class__ = MASKED_TYPES[type(module)]
    weight: Tensor = module.weight  # type: ignore[assignment]
    module.register_buffer("mask", torch.ones_like(weight.detach(), dtype=torch.bool))
    return module


def computes_weight(module: nn.Module) -> str:
    """What computes a layer's weight before each of its forward passes; empty if nothing does.

    The old forms of `weight_norm`, `spectral_norm` and `torch.nn.utils.prune` leave the class of a
    layer as it is and replace the parameter `weight` by an attribute.
    """
    own = dict(module.named_parameters(recurse=False))
    if "weight" in own:
        return ""
    makers = {"weight_v": "weight_norm", "weight_orig": "spectral_norm or torch.nn.utils.prune"}
    return next((maker for key, maker in makers.items() if key in own), "")


def masked_layers(module: nn.Module) -> dict[str, Any]:
    """Masked layers of a module by name."""
    return {n: m for n, m in unwrapped(module).named_modules() if isinstance(m, Masked)}
