# SPDX-License-Identifier: MIT
"""Units of pruning: single weights, N:M groups, blocks, filters (section 1.7).

A pruner written for single weights works on any unit: it ranks `pool(score)` instead of the score,
counts its budgets in groups, and turns the groups it keeps into a mask with `expand`. All tensors
are read in the logical order (C_out, C_in, kh, kw), so the memory format never matters.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from solo.registry import resolve
from sparse_ext.config.granularity_names import Spelling, check_block, check_nm, read


class Granularity(ABC):
    """One way of cutting a weight into groups.

    Attributes:
        keeps: members that stay alive in a pruned group (N for N:M, else 0).
    """

    keeps: int = 0

    @abstractmethod
    def __str__(self) -> str:
        """The text that `parse` turns into this granularity."""

    @abstractmethod
    def view(self, weight: Tensor) -> Tensor:
        """`weight` as (groups, group_size); a copy where the layout demands one."""

    @abstractmethod
    def unview(self, groups: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Inverse of `view`: (groups, group_size) as a contiguous tensor of `shape`."""

    @abstractmethod
    def n_groups(self, shape: tuple[int, ...]) -> int:
        """Number of groups in a weight of `shape`."""

    def group_size(self, shape: tuple[int, ...]) -> int:
        """Members of one group, virtual ones included."""
        return math.prod(shape) // self.n_groups(shape)

    @abstractmethod
    def obstacle(self, weight: Tensor, module: nn.Module) -> str:
        """Why this weight cannot be grouped; an empty string if it can."""

    def eligible(self, weight: Tensor, module: nn.Module) -> bool:
        """Whether this weight can be grouped; otherwise its layer stays dense, outside N."""
        return not self.obstacle(weight, module)

    def pool(self, score: Tensor) -> Tensor:
        """One score per group: the sum over its members, shape (groups,)."""
        return self.view(score).sum(dim=1)

    def expand(self, kept: Tensor, latent: Tensor) -> Tensor:
        """The mask with whole groups where `kept` is 1 and pruned groups elsewhere.

        Args:
            kept: bool, one entry per group, as `pool` orders them.
            latent: the weight (pruned values included), which decides by magnitude who survives
                in a pruned N:M group; elsewhere only its shape and memory format matter.

        Returns:
            bool tensor of the latent's shape and memory format.
        """
        members = kept.unsqueeze(1).expand(-1, self.group_size(tuple(latent.shape)))
        return _like(self.unview(members, tuple(latent.shape)), latent)

    def groups_kept(self, mask: Tensor) -> Tensor:
        """Inverse of `expand`: bool per group, 1 where all its members are kept."""
        return self.view(mask).all(dim=1)

    def fits(self, mask: Tensor) -> bool:
        """Whether `expand` could have made this mask: no group is in between."""
        return torch.equal(self.expand(self.groups_kept(mask), mask), mask)

    def sparsity(self, share: float, shape: tuple[int, ...]) -> float:
        """Share of zeros in a weight of `shape` when that share of its groups is pruned."""
        return share * (1 - self.keeps / self.group_size(shape))


class Element(Granularity):
    """Single weights. `pool` and `expand` keep the weight's shape, so nothing is copied."""

    def __str__(self) -> str:
        return "element"

    def view(self, weight: Tensor) -> Tensor:
        return weight.reshape(-1, 1)

    def unview(self, groups: Tensor, shape: tuple[int, ...]) -> Tensor:
        return groups.reshape(shape)

    def n_groups(self, shape: tuple[int, ...]) -> int:
        return math.prod(shape)

    def obstacle(self, weight: Tensor, module: nn.Module) -> str:
        return ""

    def pool(self, score: Tensor) -> Tensor:
        return score

    def expand(self, kept: Tensor, latent: Tensor) -> Tensor:
        return _like(kept.reshape(latent.shape), latent)

    def groups_kept(self, mask: Tensor) -> Tensor:
        return mask


class NM(Granularity):
    """N of M consecutive input channels at one kernel position (M consecutive inputs of a linear).

    A pruned group keeps its N members of largest magnitude, ties by lowest index.

    Raises:
        ConfigError: unless 0 < N < M.
    """

    def __init__(self, n: int, m: int) -> None:
        check_nm(Spelling("nm", n=n, m=m))
        self.keeps, self.m = n, m

    def __str__(self) -> str:
        return f"{self.keeps}:{self.m}"

    def view(self, weight: Tensor) -> Tensor:
        return weight.movedim(1, -1).reshape(-1, self.m)

    def unview(self, groups: Tensor, shape: tuple[int, ...]) -> Tensor:
        rows = groups.reshape(shape[0], *shape[2:], shape[1])
        return rows.movedim(-1, 1).contiguous()

    def n_groups(self, shape: tuple[int, ...]) -> int:
        return math.prod(shape) // self.m

    def obstacle(self, weight: Tensor, module: nn.Module) -> str:
        inputs = weight.shape[1]
        return f"{inputs} input channels, not a multiple of {self.m}" if inputs % self.m else ""

    def expand(self, kept: Tensor, latent: Tensor) -> Tensor:
        whole = kept.unsqueeze(1).expand(-1, self.m)
        mask = self.best(latent) | self.unview(whole, tuple(latent.shape))
        return _like(mask, latent)

    def best(self, latent: Tensor) -> Tensor:
        """The N members of largest magnitude of every group: a mask of the latent's shape."""
        rows, groups = latent.shape[0], latent.shape[1] // self.m
        split = latent.reshape(rows, groups, self.m, -1).movedim(2, 0)
        columns = torch.empty(split.shape, dtype=latent.dtype, device=latent.device)
        torch.abs(split, out=columns)  # one column per member, each contiguous
        narrow = torch.int8 if self.m < 128 else torch.int16
        rank = torch.empty(split.shape, dtype=narrow, device=latent.device)
        for i in range(self.m):
            rank[i] = self.m - 1 - i  # as if all later members came first
        for i in range(self.m):  # counting beats sorting in rows as short as these
            for j in range(i):
                earlier = (columns[j] >= columns[i]).view(torch.int8)
                rank[i] += earlier
                rank[j] -= earlier
        return (rank < self.keeps).movedim(0, 2).reshape(latent.shape)

    def fits(self, mask: Tensor) -> bool:
        alive = self.view(mask).count_nonzero(dim=1)
        return bool(((alive == self.keeps) | (alive == self.m)).all())

    def satisfied(self, weight: Tensor) -> bool:
        """Whether no group of `weight` has more than N non-zeros."""
        return int(self.view(weight).count_nonzero(dim=1).max()) <= self.keeps


class Block(Granularity):
    """Tiles of `size` output by `size` input channels, at each kernel position by itself.

    Args:
        size: edge of a tile; 8 in SyncCP (Algorithm 3), the width of its tensor core.
        merge_kernel: one group per tile with all its kernel positions.
        pad: allow channel counts that `size` does not divide; edge tiles are then filled up with
            virtual zeros and groups are scored by the mean of their real members.

    Raises:
        ConfigError: for a size below 2.
    """

    def __init__(self, size: int = 8, merge_kernel: bool = False, pad: bool = False) -> None:
        check_block(Spelling("block", size=size))
        self.size, self.merge_kernel, self.pad = size, merge_kernel, pad

    def __str__(self) -> str:
        return f"block{self.size}" + "-merged" * self.merge_kernel + "-padded" * self.pad

    def view(self, weight: Tensor) -> Tensor:
        rows, columns, positions = self._tiles(tuple(weight.shape))
        size = self.size
        right, bottom = columns * size - weight.shape[1], rows * size - weight.shape[0]
        flat = weight.reshape(*weight.shape[:2], positions)
        if right or bottom:
            flat = F.pad(flat, (0, 0, 0, right, 0, bottom))
        tiles = flat.reshape(rows, size, columns, size, positions)
        if self.merge_kernel:
            return tiles.permute(0, 2, 4, 1, 3).reshape(rows * columns, -1)
        return tiles.permute(4, 0, 2, 1, 3).reshape(positions * rows * columns, -1)

    def unview(self, groups: Tensor, shape: tuple[int, ...]) -> Tensor:
        rows, columns, positions = self._tiles(shape)
        size = self.size
        if self.merge_kernel:
            tiles = groups.reshape(rows, columns, positions, size, size).permute(0, 3, 1, 4, 2)
        else:
            tiles = groups.reshape(positions, rows, columns, size, size).permute(1, 3, 2, 4, 0)
        flat = tiles.reshape(rows * size, columns * size, positions)
        return flat[: shape[0], : shape[1]].reshape(shape).contiguous()

    def n_groups(self, shape: tuple[int, ...]) -> int:
        rows, columns, positions = self._tiles(shape)
        return rows * columns * (1 if self.merge_kernel else positions)

    def group_size(self, shape: tuple[int, ...]) -> int:
        return self.size**2 * (math.prod(shape[2:]) if self.merge_kernel else 1)

    def obstacle(self, weight: Tensor, module: nn.Module) -> str:
        conv_groups = getattr(module, "groups", 1)
        outputs, inputs = weight.shape[0] // conv_groups, weight.shape[1]
        if conv_groups > 1 and outputs % self.size:
            return f"{conv_groups} channel groups of {outputs} outputs, blocks would cross them"
        if not self.pad and (outputs % self.size or inputs % self.size):
            return f"{outputs}x{inputs} channels, not multiples of {self.size}"
        return ""

    def pool(self, score: Tensor) -> Tensor:
        if not self.pad:
            return super().pool(score)
        real = self.view(torch.ones_like(score))
        return super().pool(score) / real.sum(dim=1)

    def groups_kept(self, mask: Tensor) -> Tensor:
        return self.view(mask).any(dim=1)  # virtual members are never kept

    def _tiles(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Tiles along outputs, tiles along inputs, kernel positions."""
        return -(-shape[0] // self.size), -(-shape[1] // self.size), math.prod(shape[2:])


class Filter(Granularity):
    """Units of all weights of one output channel."""

    def __str__(self) -> str:
        return "filter"

    def view(self, weight: Tensor) -> Tensor:
        return weight.flatten(1)

    def unview(self, groups: Tensor, shape: tuple[int, ...]) -> Tensor:
        return groups.reshape(shape)

    def n_groups(self, shape: tuple[int, ...]) -> int:
        return shape[0]

    def obstacle(self, weight: Tensor, module: nn.Module) -> str:
        return ""


def parse(text: str | Spelling | Granularity) -> Granularity:
    """The granularity that `text` names (see `sparse_ext.config.granularity_names.read`).

    Args:
        text: as a user writes it, or what `read` has made of that (a method's configuration keeps
            it as `spelling`); a `Granularity` comes back as it is.

    Raises:
        ConfigError: for an unknown name, or numbers that make no sense (4:2, block1).
    """
    if isinstance(text, Granularity):
        return text
    spelling = text if isinstance(text, Spelling) else read(text)
    return resolve(spelling.form.build)(spelling)  # type: ignore[union-attr]


def build_element(spelling: Spelling) -> Element:
    """The granularity of single weights."""
    return Element()


def build_nm(spelling: Spelling) -> NM:
    """N:M groups of the numbers in `spelling`."""
    return NM(spelling.n, spelling.m)


def build_block(spelling: Spelling) -> Block:
    """The granularity of blocks of the size in `spelling`."""
    return Block(spelling.size, spelling.merged, spelling.padded)


def build_filter(spelling: Spelling) -> Filter:
    """The granularity of whole output channels."""
    return Filter()


def _like(mask: Tensor, weight: Tensor) -> Tensor:
    """`mask` as bool in the memory format of `weight`."""
    return torch.empty_like(weight, dtype=torch.bool).copy_(mask)
