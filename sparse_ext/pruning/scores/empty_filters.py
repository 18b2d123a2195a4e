# SPDX-License-Identifier: MIT
"""Gradients of filters that masks have emptied, in front of a batch norm.

An emptied filter puts out zero everywhere, so batch norm divides what comes back through it by
sqrt(eps) and not by the standard deviation of a live filter: its gradient is hundreds of times too
large where the bias of the batch norm lets it through (above 0 in front of a ReLU), and it is
exactly zero where the bias does not. Ranking whole filters or blocks by such gradients would bring
back emptied filters with a positive bias first, whatever they are worth.

`fair_gradients` gives them the division that a live filter of their layer has. A filter without any
gradient stays without: nothing that grows by gradients can see it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparse_ext.compat import BatchNorm, unwrapped
from sparse_ext.masks.encoder import Encoder


def norms_behind(net: nn.Module) -> dict[str, Any]:
    """The batch norm that follows each convolution or linear layer in its own parent module.

    Layers that are followed by another layer first, or by a norm of another width, have none.

    Args:
        net: an encoder.

    Returns:
        batch norms by the name of the layer in front of them.
    """
    found: dict[str, Any] = {}
    for prefix, parent in unwrapped(net).named_modules():
        last: tuple[str, Any] | None = None
        for name, child in parent.named_children():
            if isinstance(child, nn.Conv2d | nn.Linear):
                last = (f"{prefix}.{name}".lstrip("."), child)
            elif isinstance(child, BatchNorm):
                if last is not None and child.num_features == last[1].weight.shape[0]:
                    found[last[0]] = child
                last = None
    return found


@torch.no_grad()
def fair_gradients(scores: Mapping[str, Tensor], encoder: Encoder) -> dict[str, Tensor]:
    """Scores in which emptied filters are divided by what live ones of their layer are.

    A filter's gradient carries the factor 1 / sqrt(var + eps) of its batch norm, with var = 0 when
    it is empty; here that becomes 1 / sqrt(v + eps) with v the median running variance of the
    layer's live filters.

    Args:
        scores: |gradient| by layer, of the weights' shapes.
        encoder: whose masks say which filters are empty.
    """
    norms = norms_behind(encoder.module)
    fair = {}
    for name, score in scores.items():
        norm = norms.get(name)
        alive = encoder.masks[name].flatten(1).any(1)
        if norm is None or norm.running_var is None or alive.all() or not alive.any():
            fair[name] = score
            continue
        typical = norm.running_var[alive].median()
        factor = torch.ones_like(norm.running_var)
        factor[~alive] = (norm.eps / (typical + norm.eps)).sqrt()
        fair[name] = score * factor.view(-1, *[1] * (score.ndim - 1))
    return fair
