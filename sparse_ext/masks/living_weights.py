# SPDX-License-Identifier: MIT
"""Masked forward passes of living weights: one latent weight under several masks.

Most methods store pruned weights as zero. SDCLR, SD-* on one encoder, SR-STE and MCP cannot:
a pruned weight goes on living and may come back. Their layers multiply by the mask in the forward
pass, in those passes where `Branches` says so; the buffer `masked_eval` tells evaluation, from the
checkpoint alone, whether the pruned or the dense network is what the method trains.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from solo.errors import ConfigError
from solo.utils.views import current_view
from sparse_ext.masks.encoder import Encoder, masked
from sparse_ext.masks.masked_layers import MaskedConv2d, MaskedLinear

MARKER = "masked_eval"  # the buffer of a functional layer
OTHER_BN = "masked"  # the child of a dual batch norm that the pruned branch uses

_forced: ContextVar[bool | None] = ContextVar("forced_branch", default=None)


@dataclass(frozen=True)
class Branches:
    """Which forward passes of an encoder see its mask.

    Attributes:
        first: those of view 0.
        others: those of the other views.
        evaluation: those outside of a training step.
    """

    first: bool
    others: bool
    evaluation: bool

    def masked(self, layer: nn.Module) -> bool:
        """Whether the pass under way goes through the mask.

        Raises:
            ConfigError: in a training step that does not announce its views.
        """
        if (forced := _forced.get()) is not None:
            return forced
        if self.first == self.others == self.evaluation:
            return self.first
        view = current_view()
        if view is not None:
            return self.others if view.index else self.first
        if layer.training:
            raise ConfigError(
                "This sparse method treats views differently, but the training step does not say "
                "which view it encodes: wrap each pass in solo.utils.views.encoding(index), as "
                "the methods of solo do."
            )
        return self.evaluation


ALWAYS = Branches(True, True, True)


@contextmanager
def branch(masked: bool) -> Iterator[None]:
    """Inside, every functional layer takes the masked (or the dense) branch."""
    token = _forced.set(masked)
    try:
        yield
    finally:
        _forced.reset(token)


class _StraightThrough(torch.autograd.Function):
    """Product with a mask whose gradient is that of the identity."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor) -> Tensor:
        return masked(weight, mask)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0], None


class Functional:
    """Mixed into masked layers whose weights stay alive."""

    weight: Tensor
    mask: Tensor
    branches: Branches
    straight: bool

    def seen_weight(self) -> Tensor:
        """The weight as this pass sees it."""
        if not self.branches.masked(self):  # type: ignore[arg-type]
            return self.weight
        if self.straight:
            return _StraightThrough.apply(self.weight, self.mask)
        return masked(self.weight, self.mask)


class FunctionalConv2d(Functional, MaskedConv2d):
    """A convolution with the mask in its forward pass; made by `make_functional`."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.seen_weight(), self.bias)


class FunctionalLinear(Functional, MaskedLinear):
    """A linear layer with the mask in its forward pass; made by `make_functional`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.seen_weight(), self.bias)


FUNCTIONAL_TYPES: dict[type[nn.Module], type[nn.Module]] = {
    MaskedConv2d: FunctionalConv2d,
    MaskedLinear: FunctionalLinear,
}


class LatentEncoder(Encoder):
    """An encoder whose stored weights are the latent ones: masks never touch weights or state.

    Args:
        encoder: the same layers as any method sees them.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.module, self.layers, self.masks = encoder.module, encoder.layers, encoder.masks

    def mask_gradients(self) -> None:
        """What the forward pass did not use has no gradient already."""

    def project(self, optimizer: Any = None) -> None:
        """Do nothing: the pruned weights of these methods live on."""

    @torch.no_grad()
    def change(
        self, new: dict[str, Tensor], regrow: Any = None, optimizer: Any = None, between: Any = None
    ) -> int:
        """Put new masks in place and return how many entries differ from the old ones."""
        self.masks.check_same_layers(new)
        flips = 0
        for name, layer in self.layers.items():
            flips += int((layer.mask ^ new[name]).count_nonzero())
            layer.mask.copy_(new[name])
        return flips

    def check(self, optimizer: Any = None, kept: int | None = None) -> None:
        """There is nothing that masks could contradict."""


def make_functional(encoder: Encoder, branches: Branches, straight: bool = False) -> LatentEncoder:
    """Move the masks of an encoder's layers into their forward passes, in place.

    Args:
        encoder: with masked layers; those that are functional already take the new branches.
        branches: which passes are masked.
        straight: the gradient of a masked pass reaches pruned weights too.

    Raises:
        ConfigError: a layer's forward pass cannot take a mask.
    """
    for name, layer in encoder.layers.items():
        if not isinstance(layer, Functional):
            layer.__class__ = _functional_type(name, type(layer))
        layer.branches, layer.straight = branches, straight
        flag = torch.tensor(branches.evaluation, device=layer.weight.device)
        layer.register_buffer(MARKER, flag)
    return LatentEncoder(encoder)


def _functional_type(name: str, kind: type) -> type:
    if kind not in FUNCTIONAL_TYPES:
        raise ConfigError(
            f"This sparse method multiplies by masks in the forward pass, which the "
            f"{kind.__name__} '{name}' cannot do: choose a method that stores pruned weights as "
            f"zero (gmp, granet, synccp, ...), or leave the layer out with sparse.exclude."
        )
    return FUNCTIONAL_TYPES[kind]


# -- dual batch norm ---------------------------------------------------------------------------


# -- checkpoints -------------------------------------------------------------------------------


def evaluated_masked(state: Mapping[str, Tensor]) -> dict[str, bool]:
    """Layers that a checkpoint marks as functional: whether evaluation sees their mask."""
    marks = [key for key in state if key.endswith(f".{MARKER}")]
    return {key.removesuffix(f".{MARKER}"): bool(state[key]) for key in marks}


def training_only(state: Mapping[str, Tensor]) -> set[str]:
    """Keys of the branch that evaluation does not use: markers, its masks, second batch norms."""
    layers = evaluated_masked(state)
    keys = {f"{name}.{MARKER}" for name in layers}
    keys |= {f"{name}.mask" for name, masked in layers.items() if not masked}
    if layers:
        keys |= {key for key in state if f".{OTHER_BN}." in key}
    return keys


def evaluated(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network that evaluation sees, out of living weights, as any other sparse one is stored.

    Weights that evaluation sees masked are zero where their mask is, batch norms hold the set of
    the branch that is evaluated, and what only training needs is gone.

    Args:
        state: of an encoder; one without living weights comes back as it is.
    """
    layers = evaluated_masked(state)
    beside = training_only(state)
    found = {key: value for key, value in state.items() if key not in beside}
    for name in (name for name, hidden in layers.items() if hidden):
        weight, mask = found.get(f"{name}.weight"), found.get(f"{name}.mask")
        if weight is not None and mask is not None and weight.shape == mask.shape:
            found[f"{name}.weight"] = weight.masked_fill(~mask.bool(), 0)
    if any(layers.values()):
        seconds = {key: key.replace(f".{OTHER_BN}.", ".") for key in state}
        found |= {own: state[key] for key, own in seconds.items() if own != key}
    return found
