# SPDX-License-Identifier: MIT
"""Parameters that go with a channel without having a mask: biases, norms, position tables, tokens.

Where channels are multiplied, normalised over or attended with, one can be removed only if all that
belongs to it is zero. Masks see to the weights of convolutions and linear layers; the rest is held
at zero here, for as long as a channel is pruned. What comes back starts at zero; the scale of a
norm at the mean of those that are alive, because from zero it would never move.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class Companion(NamedTuple):
    """One axis of a parameter.

    Attributes:
        name: of the parameter.
        axis: whose indices belong to channels.
        groups: (indices, k) numbers of the channel groups, -1 where there is none.
        scale: whether it is the scale of a norm.
    """

    name: str
    axis: int
    groups: Tensor
    scale: bool


Dead = list[Tensor]  # per companion, the indices that are zero


class Companions:
    """The parameters that go with the channels of one architecture.

    Args:
        entries: them.
        alive: from masks to one bool per channel group.
    """

    def __init__(
        self, entries: Sequence[Companion], alive: Callable[[Mapping[str, Tensor]], Tensor]
    ) -> None:
        self.entries, self._alive = list(entries), alive
        self._last: dict[int, tuple[tuple[int, ...], Dead]] = {}

    def dead(self, masks: Mapping[str, Tensor]) -> Dead:
        """Which indices are pruned under those masks; found once per change of them."""
        versions = tuple(mask._version for mask in masks.values())
        known = self._last.get(id(masks))
        if known is None or known[0] != versions:
            alive = self._alive(masks).cpu()
            wide = torch.cat([alive, torch.ones(1, dtype=torch.bool)])
            known = versions, [(~wide[e.groups].all(1)).nonzero()[:, 0] for e in self.entries]
            self._last[id(masks)] = known
        return known[1]

    @torch.no_grad()
    def project(
        self, module: nn.Module, masks: Mapping[str, Tensor], optimizer: Optimizer | None = None
    ) -> None:
        """Pruned entries and their optimizer state become zero."""
        for entry, index in self._pruned(masks):
            parameter = module.get_parameter(entry.name)
            index = index.to(parameter.device)
            states: dict = {} if optimizer is None else optimizer.state.get(parameter, {})
            for tensor in (parameter, *states.values()):
                if isinstance(tensor, Tensor) and tensor.shape == parameter.shape:
                    tensor.index_fill_(entry.axis, index, 0)

    @torch.no_grad()
    def mask_gradients(self, module: nn.Module, masks: Mapping[str, Tensor]) -> None:
        """Gradients of pruned entries become zero."""
        for entry, index in self._pruned(masks):
            grad = module.get_parameter(entry.name).grad
            if grad is not None:
                grad.index_fill_(entry.axis, index.to(grad.device), 0)

    @torch.no_grad()
    def regrow(self, module: nn.Module, before: Dead, masks: Mapping[str, Tensor]) -> None:
        """Scales of norms that are no longer pruned start at the mean of those that were not."""
        for entry, old, new in zip(self.entries, before, self.dead(masks), strict=True):
            back = old[~torch.isin(old, new)]
            parameter = module.get_parameter(entry.name)
            if entry.scale and back.numel() and old.numel() < parameter.numel():
                others = torch.ones(parameter.numel(), dtype=torch.bool, device=parameter.device)
                others[old.to(parameter.device)] = False
                parameter[back.to(parameter.device)] = parameter[others].mean()

    def _pruned(self, masks: Mapping[str, Tensor]) -> list[tuple[Companion, Tensor]]:
        pairs = zip(self.entries, self.dead(masks), strict=True)
        return [(entry, index) for entry, index in pairs if index.numel()]
