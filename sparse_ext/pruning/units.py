# SPDX-License-Identifier: MIT
"""What pruning methods rank, keep and drop: the groups of weights of a run's granularity.

A method never sees groups as such. It ranks what `pool` gives, counts in `budget`, and hands back
one bool per unit; `expand` turns that into masks. With single weights as units every tensor keeps
the shape of its weight, and nothing is copied.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from sparse_ext.allocation import budgets as allocation
from sparse_ext.config.base import ALLOCATIONS
from sparse_ext.config.granularity_names import Spelling
from sparse_ext.masks.encoder import Encoder
from sparse_ext.masks.granularity import Element, Granularity, parse
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

    def __init__(
        self, granularity: str | Spelling | Granularity, shapes: Mapping[str, tuple[int, ...]]
    ) -> None:
        self.granularity = parse(granularity)
        self.shapes = dict(shapes)
        self.sizes = {name: self.granularity.n_groups(shape) for name, shape in shapes.items()}
        self.total = sum(self.sizes.values())

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

    def pool(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One value per unit from one per weight: sums over the members."""
        return {name: self.granularity.pool(value) for name, value in values.items()}

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
        """
        if self.prune_at_least:
            return self.total - math.ceil(round(sparsity * self.total, 6))
        return 0 if sparsity == 1 else allocation.budget(sparsity, self.total)

    def allocate(self, rule: str, sparsity: float) -> dict[str, int]:
        """Kept units per layer by a rule of `ALLOCATIONS`; they add up to the budget."""
        if sparsity == 1:
            return dict.fromkeys(self.sizes, 0)
        return ALLOCATIONS[rule](self.shapes, 1 - sparsity, self.sizes)

    def largest(
        self, values: Mapping[str, Tensor], sparsity: float, eligible: Kept | None = None
    ) -> Kept:
        """The units of largest value over all layers together, exactly the budget.

        Args:
            values: one per unit.
            eligible: which units may be kept; by default any.
        """
        return allocation.global_topk(values, self.budget(sparsity), eligible)

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
        kept = {name: min(k, room[name]) for name, k in self.allocate(rule, sparsity).items()}
        missing = self.budget(sparsity) - sum(kept.values())
        if missing:  # a layer is to keep more than it still has: the others keep it
            room = {name: room[name] - kept[name] for name in room}
            share = missing / sum(room.values())
            more = allocation.exact_budgets(dict.fromkeys(room, share), room, missing)
            kept = {name: kept[name] + more[name] for name in kept}
        return {
            name: allocation.keep_topk(value, kept[name], open_.get(name))
            for name, value in values.items()
        }
