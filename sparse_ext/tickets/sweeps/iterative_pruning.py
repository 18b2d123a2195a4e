# SPDX-License-Identifier: MIT
"""Iterative magnitude pruning: pure functions of weights and masks (section 12.2)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from fractions import Fraction

from torch import Tensor, nn

from solo.errors import ConfigError, did_you_mean
from sparse_ext.allocation.topk import global_topk
from sparse_ext.masks.prunable import select


def pruned_count(nnz: int, rate: float) -> int:
    """`ceil(rate * nnz)`, exactly: 0.2 of 35 is 7, though 0.2 * 35 > 7 in floating point."""
    return math.ceil(Fraction(str(rate)) * nnz)


def prune_smallest(
    weights: Mapping[str, Tensor], masks: Mapping[str, Tensor], rate: float
) -> dict[str, Tensor]:
    """The masks without the smallest |weight| among what remains, over all layers together.

    Equal magnitudes: the earlier layer, then the lower index, is kept.

    Args:
        weights: one tensor per layer of `masks`; others are not looked at.
        masks: True where kept.
        rate: share of the kept weights that goes, rounded up.

    Raises:
        ConfigError: nothing would remain.
    """
    nnz = sum(int(mask.count_nonzero()) for mask in masks.values())
    keep = nnz - pruned_count(nnz, rate)
    if keep < 1:
        raise ConfigError(
            f"Pruning {rate:g} of the last {nnz} weights would leave none: use fewer tickets.levels"
        )
    return global_topk({name: weights[name].abs() for name in masks}, keep, masks)


def restricted(
    encoder: nn.Module, layers: Sequence[str] = (), first_convs: int = 0
) -> dict[str, nn.Module]:
    """The layers that are pruned: convolutions and linear layers, stem included, classifier not.

    Args:
        encoder: plain or masked.
        layers: globs; only layers that match one of them. `layer1.*` means the stage.
        first_convs: only the first so many convolutions; 0 means no such limit.

    Raises:
        ConfigError: a glob names no layer, or there are fewer convolutions.
    """
    found = select(encoder, stem_dense=False).layers
    if first_convs:
        convs = {name: m for name, m in found.items() if isinstance(m, nn.Conv2d)}
        if len(convs) < first_convs:
            raise ConfigError(
                f"tickets.first_convs={first_convs}: {type(encoder).__name__} has only "
                f"{len(convs)} convolutions"
            )
        return dict(list(convs.items())[:first_convs])
    for glob in layers:
        if not any(fnmatchcase(name, glob) for name in found):
            raise ConfigError(
                f"tickets.layers: no prunable layer is called '{glob}'. {did_you_mean(glob, found)}"
            )
    if not layers:
        return found
    return {n: m for n, m in found.items() if any(fnmatchcase(n, glob) for glob in layers)}
