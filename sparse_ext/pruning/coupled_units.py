# SPDX-License-Identifier: MIT
"""Channels as units: what is pruned can be removed physically (`sparse.coupled`).

A unit is a channel (granularity `filter`) or `size` neighbouring channels (`block<size>`) of a
*space*: of all tensors that share their channels, such as a residual stream. Heads of attention,
dimensions of a head, groups of a grouped convolution and positions in a group are units, too. The
score of one is the mean over every weight that writes or reads it, relative to the mean of the
space, so layers on one stream decide together.

With filters a unit's mask covers the outputs that write it; with blocks also the inputs that read
it, so every 8x8 tile is whole. Where channels are multiplied, normalised over or attended with,
masks cover both sides, too, and all else that belongs to a pruned channel is zero
(`sparse_ext.masks.channels.companions`). Every space keeps at least one unit: an empty layer would
cut the network.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from solo.errors import ConfigError
from sparse_ext.config.granularity_names import Spelling
from sparse_ext.config.sections import SparseConfig
from sparse_ext.masks.channels.companions import Companion, Companions
from sparse_ext.masks.channels.spaces import Space
from sparse_ext.masks.channels.tracing import Channels
from sparse_ext.masks.encoder import Encoder
from sparse_ext.masks.granularity import Block, Granularity
from sparse_ext.pruning.units import Kept, Units, relative_to_mean


def share_companions(config: SparseConfig, encoders: Sequence[Encoder], found: bool = True) -> None:
    """Give all encoders of a run the parameters that are zero where a channel is pruned.

    Args:
        config: of the run; only with `coupled` there are any.
        encoders: the online one first.
        found: it has them already, from its units; otherwise they are looked for.
    """
    if not config.coupled:
        return
    online = encoders[0]
    if not found:
        try:
            CoupledUnits("filter", online, online.module)
        except ConfigError:  # nothing is left that could go
            online.companions = None
    for encoder in encoders[1:]:
        encoder.companions = online.companions


class CoupledUnits(Units):
    """Units that are channel groups: what is written and read together goes together.

    Args:
        granularity: `filter` or `block<size>`, as text or as what `read` has made of it.
        encoder: whose masks are made.
        net: the module it is part of.
        both_sides: masks cover readers as well as writers, so that no channel has to stay for its
            constant; also where no gradient needs to reach what is pruned.

    Raises:
        ConfigError: if no channel of it could be removed.
    """

    unit, place = "channel group", "channel space"
    way_out = "lower sparse.final, or choose a finer sparse.granularity (filter)"

    def __init__(
        self,
        granularity: str | Spelling | Granularity,
        encoder: Encoder,
        net: nn.Module,
        both_sides: bool = False,
    ) -> None:
        super().__init__(granularity, encoder.masks.shapes)
        self.layers = dict(self.shapes)
        self.step = self.granularity.size if isinstance(self.granularity, Block) else 1
        self.both_sides = both_sides or self.step > 1
        self.channels = channels = Channels(net)
        found = [s for s in channels.spaces if not self._obstacle(s)]
        self.spaces = {s.name: s for s in found}
        if not self.spaces:
            reasons = [f"{space.name}: {self._obstacle(space)}" for space in channels.spaces[:4]]
            untraced = list(channels.untraced.items())[:2]
            reasons += [f"{name} cannot be traced ({why})" for name, why in untraced]
            raise ConfigError(
                f"sparse.coupled: no channel of this {type(net).__name__} can be removed. "
                f"{'. '.join(reasons)}"
            )
        self.sizes = {name: space.size // self.step for name, space in self.spaces.items()}
        self.shapes = {name: self._shape(space) for name, space in self.spaces.items()}
        self.total = sum(self.sizes.values())
        self._sides = self._number(channels)
        self._counts = self._pooled({n: torch.ones(1).expand(s) for n, s in self.layers.items()})
        encoder.companions = self.companions = self._companions(channels, net)

    @property
    def staying(self) -> dict[str, str]:
        """Why other channels stay in any case, by the layer that writes them."""
        why = {s.name: reason for s in self.channels.spaces if (reason := self._obstacle(s))}
        return self.channels.untraced | why

    def _shape(self, space: Space) -> tuple[int, ...]:
        """Weight shape of the first layer with a mask that writes or reads a space."""
        return next(
            self.layers[n] for n in (*space.producers, *space.consumers) if n in self.layers
        )

    def _number(self, channels: Channels) -> dict[str, list[tuple[int, Tensor, Tensor]]]:
        """Per layer: axis, the groups of its indices (indices, k), and whether masks cover them.

        Groups are numbered through all spaces; -1 is none.
        """
        group = np.full(channels.units + 1, -1, dtype=np.int64)
        covers = np.zeros((2, self.total + 1), dtype=bool)
        self._rough = np.zeros(self.total + 1, dtype=bool)
        start = 0
        for name, space in self.spaces.items():
            one = slice(start, start + self.sizes[name])
            group[space.units] = start + np.arange(space.size) // self.step
            covers[0, one] = True
            covers[1, one] = space.rough or self.both_sides
            self._rough[one] = space.rough
            start += self.sizes[name]
        self._groups = group
        sides: dict[str, list[tuple[int, Tensor, Tensor]]] = {}
        for name in self.layers:
            for axis, units in enumerate(channels.conditions.get(f"{name}.weight", [])[:2]):
                ids = group[units] if units.size else units
                if (ids >= 0).any():
                    masked = np.where(covers[axis][ids], ids, -1)
                    pair = torch.from_numpy(ids), torch.from_numpy(masked)
                    sides.setdefault(name, []).append((axis, *pair))
        return sides

    def _companions(self, channels: Channels, net: nn.Module) -> Companions | None:
        """What else belongs to the channels of rough spaces."""
        entries, norms = [], {name for s in self.spaces.values() for name in s.norms}
        for name, _ in net.named_parameters():
            owner, _, leaf = name.rpartition(".")
            if owner in self.layers and leaf == "weight":
                continue
            for axis, units in enumerate(channels.conditions.get(name, [])):
                ids = self._groups[units] if units.size else units
                ids = np.where(self._rough[ids], ids, -1) if units.size else ids
                if (ids >= 0).any():
                    scale = owner in norms and leaf == "weight"
                    entries.append(Companion(name, axis, torch.from_numpy(ids), scale))
        return Companions(entries, self._alive) if entries else None

    def _obstacle(self, space: Space) -> str:
        """Why masks cannot empty a space."""
        dense = [name for name in space.producers if name not in self.layers]
        if space.fixed or not space.consumers:
            return space.fixed or "nothing reads it"
        if dense:
            return f"{dense[0]} stays dense"
        if not {*space.producers, *space.consumers} & self.layers.keys():
            return "none of its layers has a mask"
        if self.step > 1 and space.name.partition(":")[2].isalpha():
            return "heads, groups and their dimensions are no neighbours"
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

    def pool(self, values: Mapping[str, Tensor], total: bool = False) -> dict[str, Tensor]:
        """Mean over the weights that write or read a unit; with `total` their sum."""
        pooled = self._pooled(values)
        return self._apart(pooled if total else pooled / self._counts.to(pooled.device))

    def _pooled(self, values: Mapping[str, Tensor]) -> Tensor:
        """Sums over all weights of a group; one entry per group."""
        first = next(iter(values.values()))
        dtype = torch.promote_types(first.dtype, torch.float32)
        sums = torch.zeros(self.total, dtype=dtype, device=first.device)
        for name, sides in self._sides.items():
            if name not in values:
                continue
            value = values[name].to(first.device)
            for axis, groups, _ in sides:
                rest = [d for d in range(value.ndim) if d != axis]
                each = value.sum(dim=rest, dtype=dtype)
                for column in groups.to(first.device).T:
                    known = column >= 0
                    sums.index_add_(0, column[known], each[known])
        return sums

    def _apart(self, flat: Tensor) -> dict[str, Tensor]:
        """One tensor per space, from one entry per group."""
        return dict(zip(self.sizes, flat.split(list(self.sizes.values())), strict=True))

    def kept(self, masks: Mapping[str, Tensor]) -> Kept:
        """A unit is kept while any weight that writes it is."""
        return {name: part.clone() for name, part in self._apart(self._alive(masks)).items()}

    def _alive(self, masks: Mapping[str, Tensor]) -> Tensor:
        """Which groups any mask keeps, by their writers; by their readers where none has a mask."""
        first = next(iter(masks.values()))
        counts = torch.zeros(2, 2, self.total, dtype=torch.long, device=first.device)
        for name, sides in self._sides.items():
            mask = masks[name]
            for axis, _, groups in sides:
                lives = mask.any(dim=tuple(d for d in range(mask.ndim) if d != axis))
                for column in groups.to(first.device).T:
                    known = column >= 0
                    counts[axis, 0].index_add_(0, column[known], lives[known].long())
                    counts[axis, 1].index_add_(0, column[known], known[known].long())
        written = counts[0, 1] > 0
        return torch.where(written, counts[0, 0] > 0, counts[1, 0] > 0)

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
        if name not in self._sides:
            return mask
        flat = torch.cat([*(kept[space].to(like.device) for space in self.sizes), mask.new_ones(1)])
        for axis, _, groups in self._sides[name]:
            line = flat[groups.to(like.device)].all(1)
            mask &= line.view([-1 if d == axis else 1 for d in range(like.ndim)])
        return mask

    def layer_changes(self, old: Kept, new: Kept, encoder: Encoder) -> dict[str, float]:
        """Share of each layer's weights whose mask differs."""
        a, b = self.expand(old, encoder), self.expand(new, encoder)
        return {n: int((mask ^ b[n]).count_nonzero()) / mask.numel() for n, mask in a.items()}

    # -- how many, and which ----------------------------------------------------------------

    def comparable(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Values relative to their space's mean.

        Weights of deep, wide layers are smaller, so that raw values would empty those altogether.
        """
        return relative_to_mean(values)

    def least(self, name: str) -> int:
        """A space without units would cut the network."""
        return 1

    @property
    def kinds(self) -> dict[str, Hashable]:
        """What a space is, and what writes, reads and normalises it: the kernels of all layers."""
        modules = dict(self.channels.net.named_modules())

        def kernels(names: Iterable[str]) -> tuple:
            found = ((tuple(w.shape[2:]), w.ndim) for w in (modules[n].weight for n in names))  # type: ignore[union-attr]
            return tuple(sorted(found))

        return {
            name: (
                name.partition(":")[2].rstrip("0123456789:"),
                kernels(space.producers),
                kernels(space.consumers),
                tuple(sorted(type(modules[n]).__name__ for n in space.norms)),
                len(space.others),
            )
            for name, space in self.spaces.items()
        }
