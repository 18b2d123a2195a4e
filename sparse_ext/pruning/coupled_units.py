# SPDX-License-Identifier: MIT
"""Channels as units: what is pruned can be removed physically (`sparse.coupled`).

A unit is a channel (granularity `filter`) or `size` neighbouring channels (`block<size>`) of a
*space*: of all tensors that share their channels, such as a residual stream. Its score is the mean
over every weight that writes or reads it, relative to the mean of the space, so layers on one
stream decide together. With filters a
unit's mask covers the outputs that write it; with blocks also the inputs that read it, so every
8x8 tile is whole. Every space keeps at least one unit: an empty layer would cut the network.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from solo.errors import ConfigError
from sparse_ext.allocation import budgets
from sparse_ext.config.granularity_names import Spelling
from sparse_ext.config.sections import SparseConfig
from sparse_ext.masks.channels.tracing import Channels, Space
from sparse_ext.masks.encoder import Encoder
from sparse_ext.masks.granularity import Block, Granularity
from sparse_ext.masks.living_weights import LatentEncoder
from sparse_ext.pruning.units import Kept, Units


def make_units(config: SparseConfig, encoder: Encoder) -> Units:
    """The units of `config.granularity`; channel groups with `config.coupled`.

    Raises:
        ConfigError: see `CoupledUnits`; or for weights that live on under their masks.
    """
    if not config.coupled:
        return Units(config.spelling, encoder.masks.shapes)
    if isinstance(encoder, LatentEncoder):
        raise ConfigError(
            f"sparse.coupled is for methods that store pruned weights as zero, and "
            f"sparse.name={config.name} keeps them alive here: leave sparse.coupled out."
        )
    return CoupledUnits(config.spelling, encoder, encoder.module)


class CoupledUnits(Units):
    """Units that are channel groups: what is written and read together goes together.

    Args:
        granularity: `filter` or `block<size>`, as text or as what `read` has made of it.
        encoder: whose masks are made.
        net: the module it is part of.

    Raises:
        ConfigError: if no channel of it could be removed.
    """

    def __init__(
        self, granularity: str | Spelling | Granularity, encoder: Encoder, net: nn.Module
    ) -> None:
        super().__init__(granularity, encoder.masks.shapes)
        self.layers = dict(self.shapes)
        self.both_sides = isinstance(self.granularity, Block)
        self.step = self.granularity.size if isinstance(self.granularity, Block) else 1
        channels = Channels(net)
        self.spaces = {s.name: s for s in channels.spaces if not self._obstacle(s)}
        if not self.spaces:
            raise ConfigError(
                f"sparse.coupled: no channel of this {type(net).__name__} can be removed. "
                f"{'. '.join(_reasons(channels, self._obstacle))}"
            )
        self.writes = {n: s.name for n, s in channels.writes.items() if s.name in self.spaces}
        self.reads = {n: s.name for n, s in channels.reads.items() if s.name in self.spaces}
        self.sizes = {name: space.size // self.step for name, space in self.spaces.items()}
        self.shapes = {name: self.layers[name] for name in self.spaces}
        self.total = sum(self.sizes.values())

    def _obstacle(self, space: Space) -> str:
        """Why masks cannot empty a space."""
        dense = [name for name in space.producers if name not in self.layers]
        if space.fixed or not space.consumers:
            return space.fixed or "nothing reads it"
        if dense:
            return f"{dense[0]} stays dense"
        return f"{space.size} channels" if space.size % self.step else ""

    @property
    def single(self) -> bool:
        """Whether a unit is one weight: never here."""
        return False

    @property
    def shapes_of_kept(self) -> dict[str, tuple[int, ...]]:
        """Shape of the tensors with one entry per unit, by channel space."""
        return {name: (size,) for name, size in self.sizes.items()}

    def sparsity(self, share: float) -> float:
        """The share of units; that of the weights follows from the masks."""
        return share

    def pool(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Mean over the weights that write or read a unit."""
        sums = {name: torch.zeros(0) for name in self.sizes}
        counts = dict.fromkeys(self.sizes, 0)
        for name, value in values.items():
            sides = ((self.writes.get(name), 0), (self.reads.get(name), 1))
            for space, dim in sides:
                if space is not None:
                    total = self._per_unit(value, dim, self.sizes[space])
                    seen = sums[space]
                    sums[space] = seen + total if seen.numel() else total
                    counts[space] += value.numel() // self.sizes[space]
        return {name: total / counts[name] for name, total in sums.items()}

    def _per_unit(self, value: Tensor, dim: int, units: int) -> Tensor:
        """Sums over everything but the units along one dimension."""
        rest = [d for d in range(value.ndim) if d != dim]
        wide = torch.promote_types(value.dtype, torch.float32)
        return value.sum(dim=rest, dtype=wide).view(units, -1).sum(1)

    def kept(self, masks: Mapping[str, Tensor]) -> Kept:
        """A unit is kept while any weight that writes it is."""
        alive = {name: torch.zeros(0) for name in self.sizes}
        for name, space in self.writes.items():
            rows = masks[name].flatten(1).any(1).view(self.sizes[space], -1).any(1)
            alive[space] = rows if not alive[space].numel() else alive[space] | rows
        return alive

    def fit(self, masks: Mapping[str, Tensor]) -> bool:
        """Whether `masks` are what `expand` makes of the units that they keep."""
        kept = self.kept(masks)
        return all(torch.equal(self._mask(n, kept, mask), mask) for n, mask in masks.items())

    def expand(
        self, kept: Kept, encoder: Encoder, members: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The masks that keep those units; layers outside of all spaces stay dense."""
        return {name: self._mask(name, kept, w) for name, w in encoder.weights.items()}

    def _mask(self, name: str, kept: Kept, like: Tensor) -> Tensor:
        mask = torch.ones_like(like, dtype=torch.bool)
        sides = [(self.writes.get(name), 0)]
        if self.both_sides:
            sides.append((self.reads.get(name), 1))
        for space, dim in sides:
            if space is not None:
                each = like.shape[dim] // self.sizes[space]
                line = kept[space].to(like.device).repeat_interleave(each)
                mask &= line.view([-1 if d == dim else 1 for d in range(like.ndim)])
        return mask

    def layer_changes(self, old: Kept, new: Kept, encoder: Encoder) -> dict[str, float]:
        """Share of each layer's weights whose mask differs."""
        a, b = self.expand(old, encoder), self.expand(new, encoder)
        return {n: int((mask ^ b[n]).count_nonzero()) / mask.numel() for n, mask in a.items()}

    # -- how many, and which ----------------------------------------------------------------

    def budget(self, sparsity: float) -> int:
        """Units that are kept at `sparsity`, as the base class counts them.

        Raises:
            ConfigError: if not every space could keep a unit.
        """
        budget = super().budget(sparsity)
        if budget < len(self.sizes):
            raise ConfigError(
                f"A sparsity of {sparsity} leaves {budget} of {self.total} channel groups, but "
                f"each of the {len(self.sizes)} channel spaces keeps at least one: lower "
                f"sparse.final, or choose a finer sparse.granularity (filter)."
            )
        return budget

    def allocate(self, rule: str, sparsity: float) -> dict[str, int]:
        """As the base class, but at least one each; the largest spaces make up for it."""
        counts = super().allocate(rule, sparsity)
        for name in [name for name, count in counts.items() if not count]:
            counts[max(counts, key=counts.__getitem__)] -= 1
            counts[name] = 1
        return counts

    def largest(
        self, values: Mapping[str, Tensor], sparsity: float, eligible: Kept | None = None
    ) -> Kept:
        """As the base class, over values relative to their space's mean; one stays in each.

        Weights of deep, wide layers are smaller, so that raw values would empty those altogether.
        """
        tiny = torch.finfo(torch.float32).tiny
        worth = {name: v - v.min().clamp(max=0) for name, v in values.items()}  # scores have signs
        relative = {name: v / v.mean().clamp(min=tiny) for name, v in worth.items()}
        top = torch.stack([value.max() for value in relative.values()]).max() + 1
        for name, value in relative.items():
            allowed = value if eligible is None else value.where(eligible[name], -torch.inf)
            value[allowed.argmax()] = top
        return budgets.global_topk(relative, self.budget(sparsity), eligible)


def _reasons(channels: Channels, obstacle) -> list[str]:
    reasons = [f"{space.name}: {obstacle(space)}" for space in channels.spaces[:4]]
    untraced = [f"{name} cannot be traced ({why})" for name, why in channels.untraced.items()]
    return reasons + untraced[:2]
