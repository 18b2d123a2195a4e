# SPDX-License-Identifier: MIT
"""Batch norms with two sets of parameters and statistics, one for each branch of an encoder."""

from __future__ import annotations

import copy
from collections.abc import Iterable

from torch import Tensor, nn

from solo.errors import ConfigError
from sparse_ext.compat import BatchNorm
from sparse_ext.masks.living_weights import OTHER_BN, Branches


class _Dual:
    """Mixed into batch norms that have a second set of parameters and statistics."""

    branches: Branches

    def forward(self, input: Tensor) -> Tensor:
        if self.branches.masked(self):  # type: ignore[arg-type]
            return getattr(self, OTHER_BN)(input)
        return super().forward(input)  # type: ignore[misc]


class DualBatchNorm1d(_Dual, nn.BatchNorm1d):
    """Its own set for the dense branch, `masked` for the pruned one."""


class DualBatchNorm2d(_Dual, nn.BatchNorm2d):
    """Its own set for the dense branch, `masked` for the pruned one."""


class DualSyncBatchNorm(_Dual, nn.SyncBatchNorm):
    """Its own set for the dense branch, `masked` for the pruned one."""


_DUAL = {
    nn.BatchNorm1d: DualBatchNorm1d,
    nn.BatchNorm2d: DualBatchNorm2d,
    nn.SyncBatchNorm: DualSyncBatchNorm,
}


def make_dual(modules: Iterable[nn.Module], branches: Branches, affine: bool = True) -> int:
    """Give every batch norm inside `modules` a second set, a copy of the first; returns how many.

    Repeating it keeps the sets and restores the classes, which the conversion to synchronised
    batch norm replaces.

    Args:
        modules: what to look through.
        branches: which passes use the second set.
        affine: scale and shift are doubled too; otherwise both sets share them.

    Raises:
        ConfigError: for a kind of batch norm whose forward pass we do not know.
    """
    norms = [m for module in modules for m in module.modules() if isinstance(m, BatchNorm)]
    seconds = {id(getattr(m, OTHER_BN, None)) for m in norms}
    firsts = {id(m): m for m in norms if id(m) not in seconds}
    for norm in firsts.values():
        if isinstance(norm, _Dual):
            continue
        if type(norm) not in _DUAL:
            raise ConfigError(
                f"sparse.dual_bn: a {type(norm).__name__} is none of the batch norms that can be "
                f"doubled ({', '.join(kind.__name__ for kind in _DUAL)}). Set sparse.dual_bn=false."
            )
        if not hasattr(norm, OTHER_BN):
            norm.add_module(OTHER_BN, copy.deepcopy(norm))
            if not affine:
                second = getattr(norm, OTHER_BN)
                second.weight, second.bias = norm.weight, norm.bias
        norm.__class__ = _DUAL[type(norm)]  # type: ignore[assignment]
        norm.branches = branches  # type: ignore[assignment]
    return len(firsts)


def plain_norms(module: nn.Module) -> None:
    """Give doubled batch norms their own class back, in place; the second sets are gone."""
    for norm in [m for m in module.modules() if isinstance(m, _Dual)]:
        norm.__class__ = next(plain for plain, dual in _DUAL.items() if dual is type(norm))
        delattr(norm, OTHER_BN)
        del norm.branches


def second_sets(module: nn.Module) -> set[int]:
    """`id` of every parameter that only one branch's batch norms have: the second sets."""
    norms = [m for m in module.modules() if isinstance(m, _Dual)]
    own = {id(p) for m in norms for p in m.parameters(recurse=False)}  # type: ignore[attr-defined]
    return {id(p) for m in norms for p in getattr(m, OTHER_BN).parameters()} - own
