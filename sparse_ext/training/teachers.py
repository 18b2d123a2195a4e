# SPDX-License-Identifier: MIT
"""Momentum encoders of modules that were not written for us: which one it is, and its updates."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from solo.errors import ConfigError
from sparse_ext.masks.encoder import switch_off_
from sparse_ext.masks.masked_layers import masked_layers
from sparse_ext.pruning.log import listen, log

_SAYS_SO = re.compile(r"momentum|teacher|target|(^|_)ema(_|$)|(^|_)key(_|$)|_k$")
ENOUGH = 4096  # weights of a layer that tell the rate of an average


def find_teacher(module: nn.Module, online: str) -> str | None:
    """The dotted name of the network that averages the encoder `online`, by its name.

    A frozen network of the same architecture whose name does not say so is only warned of.

    Raises:
        ConfigError: several networks could be it.
    """
    inside = f"{online}."
    student = _architecture(module.get_submodule(online))
    equal: list[str] = []
    for name, other in module.named_modules():
        part = any(name.startswith(f"{found}.") for found in equal)
        if name and name != online and not name.startswith(inside) and not part:
            equal += [name] if _architecture(other) == student else []
    named = [name for name in equal if any(map(_SAYS_SO.search, name.split(".")))]
    if len(named) > 1:
        raise ConfigError(
            f"{type(module).__name__} has several networks like '{online}': {', '.join(named)}. "
            f"Name the momentum encoder: sparsify(module, config, momentum='{named[0]}')."
        )
    unsaid = [name for name in equal if name not in named]
    for name in unsaid:
        if any(parameter.requires_grad for parameter in module.get_submodule(name).parameters()):
            continue  # it trains: no average
        listen()
        log.warning(
            "'%s' is a frozen network like '%s' and gets no masks. If it is the momentum encoder, "
            "say so: sparsify(module, config, momentum='%s').",
            *(name, online, name),
        )
    return named[0] if named else None


def _architecture(net: nn.Module) -> list[tuple[str, torch.Size]]:
    return [(name, parameter.shape) for name, parameter in net.named_parameters()]


class Follower:
    """Keeps a momentum encoder's masks in force, wherever its module averages weights.

    The module averages what is stored, xi' = tau xi + (1 - tau) theta, at a moment that only it
    knows. Before the momentum encoder's next pass, and before the backward pass, its weights are
    compared with what they were. If they have moved, the weights of one layer tell tau, the shadows
    are averaged at the same rate, and the sum of both is split anew by the mask: the average of the
    latents (section 0.7 of the algorithms specification).

    Args:
        online: the encoder that trains.
        momentum: its average.
        mode: as for `sparse_ext.training.momentum_encoder.MaskedEMA`.
    """

    def __init__(self, online: nn.Module, momentum: nn.Module, mode: str) -> None:
        students, teachers = masked_layers(online), masked_layers(momentum)
        self.pairs = [(students[name], layer) for name, layer in teachers.items()]
        self.mode = mode
        by_size = sorted(self.pairs, key=lambda pair: pair[1].weight.numel())
        large = [pair for pair in by_size if pair[1].weight.numel() >= ENOUGH]
        self.telling = large[0] if large else by_size[-1]
        self.before: list[Tensor] = []
        momentum.register_forward_pre_hook(self)

    def __call__(self, *_: Any) -> None:
        """Before a pass of the momentum encoder."""
        self.follow()

    @torch.no_grad()
    def remember(self) -> None:
        """The weights as they are now are those that masks are in force on."""
        kept = self.pairs if self.mode == "hold" else [self.telling]
        self.before = [layer.weight.detach().clone() for _, layer in kept]

    @torch.no_grad()
    def follow(self) -> None:
        """Put masks in force again if the weights have been averaged since `remember`."""
        if not self.before:
            return self.remember()
        student, teacher = self.telling
        old = self.before[self.pairs.index(self.telling) if self.mode == "hold" else 0]
        if torch.equal(teacher.weight, old):
            return None
        tau = _rate(student.weight, old, teacher.weight, teacher.mask)
        for i, (theirs, mine) in enumerate(self.pairs):
            if self.mode == "latent":
                mine.shadow.lerp_(theirs.shadow, 1 - tau)
                mine.weight.data.add_(mine.shadow)
                switch_off_(mine.shadow.copy_(mine.weight), ~mine.mask)
            elif self.mode == "hold":
                both = theirs.mask & mine.mask
                mine.weight.data.copy_(torch.where(both, mine.weight, self.before[i]))
            switch_off_(mine.weight.data, mine.mask)
        return self.remember()


def _rate(student: Tensor, old: Tensor, new: Tensor, mask: Tensor) -> float:
    """tau of new = tau old + (1 - tau) student, by least squares over the kept weights."""
    distance = ((old - student) * mask).double()
    moved = ((new - student) * mask).double()
    length = float(distance.square().sum())
    return min(1.0, max(0.0, float((moved * distance).sum()) / length)) if length else 0.0
