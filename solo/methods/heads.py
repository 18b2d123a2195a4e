# SPDX-License-Identifier: MIT
"""Projectors and predictors: every method's multi-layer perceptron comes from `mlp`.

The order of the layers fixes the state-dict keys, so it is part of the interface.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from solo.utils.momentum import initialize_momentum_params

LastNorm = Literal["none", "affine", "plain"]


def mlp(
    *dims: int,
    norm: bool = True,
    activation: Callable[[], nn.Module] = nn.ReLU,
    bias: bool = True,
    last_bias: bool | None = None,
    last_norm: LastNorm = "none",
) -> nn.Sequential:
    """Linear [BatchNorm] activation ... Linear [BatchNorm].

    Args:
        dims: widths, input first: `mlp(512, 2048, 256)` has two linear layers.
        norm: a BatchNorm1d after every linear layer but the last.
        activation: made anew for each hidden layer.
        bias: bias of every linear layer but the last.
        last_bias: bias of the last linear layer; None means as `bias`.
        last_norm: a final BatchNorm1d, with (`affine`) or without (`plain`) scale and shift.
    """
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(dims[:-1]):
        layers.append(nn.Linear(fan_in, fan_out, bias=bias))
        if norm:
            layers.append(nn.BatchNorm1d(fan_out))
        layers.append(activation())
    layers.append(nn.Linear(dims[-2], dims[-1], bias=bias if last_bias is None else last_bias))
    if last_norm != "none":
        layers.append(nn.BatchNorm1d(dims[-1], affine=last_norm == "affine"))
    return nn.Sequential(*layers)


def simsiam_projector(fan_in: int, hidden: int, out: int) -> nn.Sequential:
    """SimSiam's projector; its last bias exists but is frozen (the BatchNorm cancels it)."""
    projector = mlp(fan_in, hidden, hidden, out, bias=False, last_bias=True, last_norm="plain")
    projector[6].bias.requires_grad = False
    return projector


def momentum_pair(build: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    """An online head and its frozen momentum copy."""
    online, momentum = build(), build()
    initialize_momentum_params(online, momentum)
    return online, momentum


@torch.no_grad()
def spread(z: Sequence[Tensor]) -> Tensor:
    """Collapse gauge: std over the batch of l2-normalised (N, D) outputs; 1/sqrt(D) when spread.

    Averaged over dimensions and views; 0 when all images get the same output.
    """
    return F.normalize(torch.stack(list(z)), dim=-1).std(dim=1).mean()
