# SPDX-License-Identifier: MIT
"""What pruning methods rank, keep and drop: the groups of weights of a run's granularity.

A method never sees groups as such. It ranks what `pool` gives, counts in `budget`, and hands back
one bool per unit; `expand` turns that into masks. With single weights as units every tensor keeps
the shape of its weight, and nothing is copied.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping

import torch
from torch import Tensor

from solo.errors import ConfigError
from sparse_ext.allocation import budgets as allocation
from sparse_ext.config.base import ALLOCATIONS
from sparse_ext.config.granularity_names import Spelling
from sparse_ext.masks.encoder import Encoder
from sparse_ext.masks.granularity import Element, Filter, Granularity, parse
from sparse_ext.masks.mask_set import MaskSet

Kept = dict[str, Tensor]  # layer -> bool per unit, 1 = kept


class Units:
    """The units that are pruned as one, over all layers of an architecture.

    Args:
        granularity: what a unit is: text, or what `read` has made of it.
        shapes: weight shape per prunable layer.

    Attributes:
        sizes: units per layer.
        total: units in all; budgets are shares of it.
        prune_at_least: that share of the units goes at least; otherwise budgets are rounded.
    """

    prune_at_least = False
    #: for messages: a unit, what has several, and what to do where too few are left
    unit, place, way_out = "filter", "layer", "lower the sparsity"

    def __init__(
        self, granularity: str | Spelling | Granularity, shapes: Mapping[str, tuple[int, ...]]
    ) -> None:
        self.granularity = parse(granularity)
        self.shapes = dict(shapes)
        self.sizes = {name: self.granularity.n_groups(shape) for name, shape in shapes.items()}
        self.total = sum(self.sizes.values())
        members = {} if self.single else {n: self._members(shape) for n, shape in shapes.items()}
        #: members of a unit per layer, where those of some layers have more than those of others
        self._unequal = members if len(set(members.values())) > 1 else {}

    def _members(self, shape: tuple[int, ...]) -> float:
        """What `pool` makes of ones: by what its values are divided to be means."""
        return float(self.granularity.pool(torch.ones(1).expand(shape))[0])

    @property
    def single(self) -> bool:
        """Whether a unit is one weight."""
        return isinstance(self.granularity, Element)

    @property
    def shapes_of_kept(self) -> dict[str, tuple[int, ...]]:
        """Shape of the tensors with one entry per unit."""
        return self.shapes if self.single else {name: (n,) for name, n in self.sizes.items()}

    def sparsity(self, share: float) -> float:
        """Share of zero weights when that share of the units is pruned."""
        return self.granularity.sparsity(share, next(iter(self.shapes.values())))

    def pool(self, values: Mapping[str, Tensor], total: bool = False) -> dict[str, Tensor]:
        """One value per unit from one per weight: sums over the members, or means.

        Means where units differ in size (filters have as many members as their layer has inputs):
        by their sums the small ones would all go first, and with them whole layers.

        Args:
            values: of the weights' shapes.
            total: sums in any case.
        """
        pooled = {name: self.granularity.pool(value) for name, value in values.items()}
        if total or not self._unequal:
            return pooled
        return {name: value / self._unequal[name] for name, value in pooled.items()}

    def kept(self, masks: Mapping[str, Tensor]) -> Kept:
        """Which units the masks keep whole, as bool per unit."""
        return {name: self.granularity.groups_kept(mask) for name, mask in masks.items()}

    def count(self, masks: Mapping[str, Tensor]) -> int:
        """How many units the masks keep whole."""
        return int(torch.stack([m.count_nonzero() for m in self.kept(masks).values()]).sum())

    def fit(self, masks: Mapping[str, Tensor]) -> bool:
        """Whether `masks` are made of whole units."""
        return all(self.granularity.fits(mask) for mask in masks.values())

    def expand(
        self, kept: Kept, encoder: Encoder, members: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The masks of an encoder's weights that keep the given units.

        Args:
            kept: bool per unit.
            encoder: whose layers they are.
            members: values whose magnitude decides who survives in a pruned N:M group; by default
                the latents, so that survivors are chosen anew each time.
        """
        if members is None:
            members = encoder.latents if self.granularity.keeps else encoder.weights
        device = {name: weight.device for name, weight in encoder.weights.items()}
        return {
            name: self.granularity.expand(unit.to(device[name]), members[name].to(device[name]))
            for name, unit in kept.items()
        }

    def layer_changes(self, old: Kept, new: Kept, encoder: Encoder) -> dict[str, float]:
        """Share of each layer's weights whose mask differs."""
        shares = MaskSet(old).layer_xor_fraction(new)
        return {name: self.sparsity(share) for name, share in shares.items()}

    # -- how many, and which ----------------------------------------------------------------

    def budget(self, sparsity: float) -> int:
        """Units that are kept at `sparsity`: round half to even (section 1.1).

        With N:M units `sparsity` is the share of groups that are N:M, and may be 1.

        Raises:
            ConfigError: fewer than `least` of each layer add up to.
        """
        if self.prune_at_least:
            kept = self.total - math.ceil(round(sparsity * self.total, 6))
        else:
            kept = 0 if sparsity == 1 else allocation.budget(sparsity, self.total)
        if kept < sum(map(self.least, self.sizes)):
            raise ConfigError(
                f"A sparsity of {sparsity:g} leaves {kept} of {self.total} {self.unit}s, but each "
                f"of the {len(self.sizes)} {self.place}s keeps at least one: {self.way_out}."
            )
        return kept

    def check(self, sparsity: float) -> None:
        """Raise ConfigError for a sparsity that cannot be reached."""
        self.budget(sparsity)

    def share_pruned(self, masks: Mapping[str, Tensor]) -> float:
        """The sparsity of masks in the sense of `within`: by default the share of units."""
        return 1 - self.count(masks) / self.total

    def compare(self, masks: Mapping[str, Tensor], sparsity: float) -> int:
        """0 if masks have that sparsity, above 0 if they keep more, below 0 if they keep less."""
        return self.count(masks) - self.budget(sparsity)

    def within(
        self, choose: Callable[[float], Kept], sparsity: float, eligible: Kept | None = None
    ) -> Kept:
        """The units that `choose` keeps, given which share of all units is to go.

        Args:
            choose: from a share of the units to those that are kept.
            sparsity: by default that share; with a budget the share of what they cost.
            eligible: which units `choose` may keep; by default any.
        """
        return choose(sparsity)

    def count_costs(self, shape: tuple[int, ...] | None) -> None:
        """Find what units cost in images of that shape (C, H, W), where there is a budget."""

    def allocate(self, rule: str, sparsity: float) -> dict[str, int]:
        """Kept units per layer by a rule of `ALLOCATIONS`; they add up to the budget."""
        if sparsity == 1:
            return dict.fromkeys(self.sizes, 0)
        counts = ALLOCATIONS[rule](self.shapes, 1 - sparsity, self.sizes)
        for name in [name for name, count in counts.items() if count < self.least(name)]:
            counts[max(counts, key=counts.__getitem__)] -= 1
            counts[name] += 1
        return counts

    def largest(
        self, values: Mapping[str, Tensor], sparsity: float, eligible: Kept | None = None
    ) -> Kept:
        """The units of largest value over all layers together, exactly the budget.

        Args:
            values: one per unit.
            eligible: which units may be kept; by default any.
        """
        return self._top(self.comparable(values), self.budget(sparsity), eligible or {})

    def comparable(self, values: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Values that can be compared over layers: those of filters relative to their layer's mean.

        Weights of wide layers are smaller, and most filters are there: as they are, values would
        leave next to nothing of the late layers.
        """
        return relative_to_mean(values) if isinstance(self.granularity, Filter) else values

    def largest_per_layer(
        self,
        values: Mapping[str, Tensor],
        sparsity: float,
        rule: str,
        eligible: Kept | None = None,
    ) -> Kept:
        """As `largest`, each layer with its own budget by `rule`; together exactly the budget."""
        open_ = eligible or {}
        room = self.sizes | {name: int(mask.count_nonzero()) for name, mask in open_.items()}
        kept = allocation.fit(self.allocate(rule, sparsity), room, self.budget(sparsity))
        return {
            name: allocation.keep_topk(value, kept[name], open_.get(name))
            for name, value in values.items()
        }

    @property
    def kinds(self) -> dict[str, Hashable]:
        """What the units of each layer are, so that only such of one kind are compared
        (`isomorphic`): the kernel of its weight."""
        return {name: shape[2:] for name, shape in self.shapes.items()}

    def least(self, name: str) -> int:
        """How many units of a layer stay in any case: a layer without filters cuts the network."""
        return int(isinstance(self.granularity, Filter))

    def largest_per_kind(
        self, values: Mapping[str, Tensor], sparsity: float, eligible: Kept | None = None
    ) -> Kept:
        """As `largest`, the same share of each kind, ranked within it (Fang et al., "Isomorphic
        Pruning for Vision Models", 2024); together exactly the budget."""
        open_, kept = eligible or {}, dict[str, Tensor]()
        room = self.sizes | {name: int(mask.count_nonzero()) for name, mask in open_.items()}
        members: dict[Hashable, list[str]] = {}
        for name, kind in self.kinds.items():
            members.setdefault(kind, []).append(name)
        named = {str(i): names for i, names in enumerate(members.values())}
        sizes = {kind: sum(self.sizes[n] for n in names) for kind, names in named.items()}
        total = self.budget(sparsity)
        counts = allocation.exact_budgets(dict.fromkeys(named, total / self.total), sizes, total)
        least = {kind: sum(map(self.least, names)) for kind, names in named.items()}
        room = {kind: sum(room[n] for n in names) for kind, names in named.items()}
        for kind, count in allocation.fit(counts, room, total, least).items():
            some = self.comparable({n: values[n] for n in named[kind]})
            own = {n: open_[n] for n in named[kind] if n in open_}
            kept |= self._top(some, count, own)
        return {name: kept[name] for name in values}

    def _top(self, values: Mapping[str, Tensor], count: int, eligible: Kept) -> Kept:
        """The units of largest value over some layers; the best one of each is among them where
        `least` says so."""
        if not any(map(self.least, values)):
            return allocation.global_topk(values, count, eligible)
        best = torch.stack([value.max() for value in values.values()]).max()
        top, raised = best + best.abs() + 1, {}
        for name, value in values.items():
            allowed = value.where(eligible[name], -torch.inf) if name in eligible else value
            raised[name] = value.clone()
            raised[name][allowed.argmax()] = top
        return allocation.global_topk(raised, count, eligible)


def relative_to_mean(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor over its own mean, after a shift that leaves nothing below 0 (scores have signs).

    Args:
        values: of any shape, by name.
    """
    tiny = torch.finfo(torch.float32).tiny
    worth = {name: value - value.min().clamp(max=0) for name, value in values.items()}
    return {name: value / value.mean().clamp(min=tiny) for name, value in worth.items()}
