# SPDX-License-Identifier: MIT
"""A patched encoder as the pruners see it: masks, shadows, scores, and how they change together.

Storage (section 0.3 of the algorithms specification): pruned weights are stored as zero; `shadow`
holds their last value, `score` the running mean of |gradient|. Invariants: I1 weight == weight *
mask, I2 shadow * mask == 0, I3 optimizer state is zero where the mask is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from solo.errors import ConfigError, SoloError, did_you_mean
from sparse_ext.compat import unwrapped
from sparse_ext.masks import patching as patching
from sparse_ext.masks.channels.companions import Companions
from sparse_ext.masks.mask_set import MaskSet
from sparse_ext.masks.masked_layers import masked_layers

SIDE_BUFFERS = ("shadow", "score")


class InvariantError(SoloError, RuntimeError):
    """Masks and weights contradict each other (`sparse.debug=true` looks for that every step)."""


class Encoder:
    """The masked layers of one encoder and the buffers beside their weights.

    Args:
        module: an encoder that `patch` has been through (compiled or not).

    Attributes:
        module: it, without the wrapper of `torch.compile`.
        layers: its masked layers by name.
        masks: theirs.
        companions: parameters without masks that are zero where a channel is pruned, if any.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = unwrapped(module)
        self.layers = masked_layers(module)
        self.masks = MaskSet(self.layers)
        self.companions: Companions | None = None

    @property
    def sizes(self) -> dict[str, int]:
        """Number of weights of each masked layer."""
        return {name: layer.weight.numel() for name, layer in self.layers.items()}

    @property
    def weights(self) -> dict[str, Tensor]:
        """The stored weights by layer, zero where they are pruned."""
        return {name: layer.weight.detach() for name, layer in self.layers.items()}

    @property
    def latents(self) -> dict[str, Tensor]:
        """The dense view: stored weights plus the last values of pruned ones."""
        return {name: latent(layer) for name, layer in self.layers.items()}

    @property
    def scores(self) -> dict[str, Tensor]:
        """The running mean of |gradient| of each layer."""
        return {name: layer.score for name, layer in self.layers.items()}

    def add_buffer(self, name: str) -> None:
        """Give every layer the fp32 side buffer `name`, zero, unless it has it."""
        for layer in self.layers.values():
            _add_buffer(layer, name)

    def widen_buffers(self) -> None:
        """Side buffers are float32 or wider, also after `module.to(torch.bfloat16)`."""
        for layer in self.layers.values():
            for name in SIDE_BUFFERS:
                if hasattr(layer, name):
                    buffer = getattr(layer, name)
                    setattr(layer, name, buffer.to(_wide(layer.weight.dtype)))

    def buffers(self) -> list[Tensor]:
        """The masks and side buffers of all layers."""
        return [b for m in self.layers.values() for b in m.buffers(recurse=False)]

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Gradients of pruned weights become zero, so that clipping and LARS do not see them."""
        for layer in self.layers.values():
            if layer.weight.grad is not None:
                switch_off_(layer.weight.grad, layer.mask)
        if self.companions is not None:
            self.companions.mask_gradients(self.module, self.masks)

    @torch.no_grad()
    def project(self, optimizer: Optimizer | None = None) -> None:
        """Pruned weights and their optimizer state become zero (I1, I3)."""
        for layer in self.layers.values():
            for tensor in (layer.weight, *states_of(optimizer, layer.weight)):
                switch_off_(tensor, layer.mask)
        if self.companions is not None:
            self.companions.project(self.module, self.masks, optimizer)

    def change(
        self,
        new: dict[str, Tensor],
        regrow: Any,
        optimizer: Optimizer | None = None,
        between: Mapping[str, Tensor] | None = None,
    ) -> int:
        """Apply new masks (section 0.5) and return how many entries differ from the old ones.

        Args:
            new: mask per layer.
            regrow: start value of grown weights, see `apply_new`.
            optimizer: whose state belongs to the weights.
            between: masks that were in force for a moment: what they drop starts anew.
        """
        self.masks.check_same_layers(new)
        before = [] if self.companions is None else self.companions.dead(self.masks)
        flips = 0
        for name, layer in self.layers.items():
            shadow = getattr(layer, "shadow", None)
            states = states_of(optimizer, layer.weight)
            passing = None if between is None else between[name]
            masks = layer.mask, new[name]
            change = apply_new(layer.weight, *masks, shadow, regrow, states, passing)
            flips += int((change.dropped | change.grown).count_nonzero())
        if self.companions is not None:
            self.companions.regrow(self.module, before, self.masks)
            self.companions.project(self.module, self.masks, optimizer)
        return flips

    def check(self, optimizer: Optimizer | None = None, kept: int | None = None) -> None:
        """Raise InvariantError unless I1-I3 hold, and I4 (`kept` weights) where given."""
        for name, layer in self.layers.items():
            off = ~layer.mask
            states = states_of(optimizer, layer.weight)
            for what, tensor in [("weight", layer.weight), *(("state", s) for s in states)]:
                if tensor.detach()[off].any():
                    raise InvariantError(f"Layer '{name}': a pruned {what} is not zero.")
            if hasattr(layer, "shadow") and layer.shadow[layer.mask].any():
                raise InvariantError(f"Layer '{name}': a kept weight has a shadow.")
        if kept is not None and self.masks.nnz != kept:
            raise InvariantError(f"{self.masks.nnz} weights are kept instead of {kept}.")


def check_stored(encoders: Iterable[Encoder]) -> None:
    """At the end of a run: nothing else than the optimizer has written to the weights.

    Raises:
        InvariantError: weights under a mask are not zero; names what does such things.
    """
    for encoder in encoders:
        try:
            encoder.check()
        except InvariantError as error:
            raise InvariantError(
                f"{error} Its mask was in force after the last optimizer step, so something else "
                f"has written to the weights since: averaging of weights (EMA, SWA), a callback, "
                f"or a hook of the module. Its checkpoints may hold such weights, too."
            ) from error


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def switch_off_(tensor: Tensor, mask: Tensor) -> None:
    """Entries become +0.0 where the mask is 0, in place, whatever they were.

    Bits and mask are combined as integers: a product would leave -0.0 of negative entries and NaN
    of NaN, and `masked_fill_` takes several times as long on the CPU.
    """
    bits = tensor.view(_INTEGERS[tensor.element_size()])
    bits.bitwise_and_(mask.view(torch.int8).neg())  # a mask's 1 is -1, all bits set


def masked(tensor: Tensor, mask: Tensor) -> Tensor:
    """A copy of `tensor` with zeros (of either sign) where the mask is 0; it has a gradient."""
    return tensor * mask.view(torch.int8)


def latent(layer: Any) -> Tensor:
    """Dense view of a masked layer's weight."""
    weight = layer.weight.detach()
    return weight + layer.shadow if hasattr(layer, "shadow") else weight


def states_of(optimizer: Optimizer | None, weight: Tensor) -> list[Tensor]:
    """Optimizer state tensors of the weight's shape: momentum buffers, moments."""
    state: dict = {} if optimizer is None else optimizer.state.get(weight, {})
    return [s for s in state.values() if isinstance(s, Tensor) and s.shape == weight.shape]


def _add_buffer(layer: Any, name: str) -> None:
    if not hasattr(layer, name):
        weight = layer.weight.detach()
        layer.register_buffer(name, torch.zeros_like(weight, dtype=_wide(weight.dtype)))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


class Change(NamedTuple):
    """Where a mask update switched weights off (`dropped`) and on (`grown`)."""

    dropped: Tensor
    grown: Tensor


@torch.no_grad()
def apply_new(
    weight: Tensor,
    old: Tensor,
    new: Tensor,
    shadow: Tensor | None = None,
    regrow: Literal["latent", "zero"] = "latent",
    states: Iterable[Tensor] = (),
    between: Tensor | None = None,
) -> Change:
    """Change a layer's mask from `old` to `new`, everything in place (section 0.5).

    Dropped weights go to `shadow` and become zero. Grown weights start at their shadow value
    ("latent") or at zero, and leave the shadow. Weights in both masks keep value and state, unless
    a mask `between` the two has dropped them: then they are grown anew.

    Args:
        weight: the stored weight, zero where `old` is 0.
        old: the layer's mask buffer; holds `new` afterwards.
        new: the mask to change to.
        shadow: last values of pruned weights, or None if the method keeps none; grown weights
            then start at zero whatever `regrow` says.
        regrow: start value of grown weights.
        states: optimizer state tensors of the weight's shape; zero at every change.
        between: the mask that was in force for a moment.

    Raises:
        ConfigError: for another value of `regrow`.
    """
    if regrow not in ("latent", "zero"):
        raise ConfigError(f"regrow={regrow!r}. {did_you_mean(regrow, ('latent', 'zero'))}")
    change = Change(old & ~new, new & ~old)
    fresh = change.grown if between is None else new & ~(old & between)
    if shadow is not None and regrow == "latent":
        start = torch.where(change.grown, shadow, weight)
    else:
        start = weight.masked_fill(fresh, 0)
    if shadow is not None:
        shadow.copy_(torch.where(change.dropped, weight, shadow)).masked_fill_(change.grown, 0)
    weight.copy_(start).masked_fill_(change.dropped, 0)
    changed = change.dropped | fresh
    for state in states:
        state.masked_fill_(changed, 0)
    old.copy_(new)
    return change
