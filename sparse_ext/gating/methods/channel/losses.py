# SPDX-License-Identifier: MIT
"""Losses of channel gating: pure functions of the gates' usage."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def budget_loss(rho: Tensor, budget: float, lamb: float) -> Tensor:
    """lambda (rho - t_d)^2 (Dual, Eq. 3).

    Args:
        rho: MACs used over those of the dense network, 0-dim.
        budget: t_d.
        lamb: lambda.
    """
    return lamb * (rho - budget) ** 2


def bound_loss(
    rates: Sequence[Tensor], budget: float, epoch: int, gamma: float, alpha: float
) -> Tensor:
    """Keeps the share of open gates of every layer near sqrt(t_d) at first, then lets it go.

    With r = sqrt(t_d) and p = exp(-alpha epoch) a layer may be between p r and 1 - p + p r. In the
    authors' training code, not in the paper.

    Args:
        rates: share of open gates of each layer, 0-dim.
        budget: t_d; both convolutions of a block shrink by the rate, so its square is spent.
        epoch: from 0.
        gamma: weight.
        alpha: rate of widening per epoch.
    """
    p, r = math.exp(-alpha * epoch), math.sqrt(budget)
    den = torch.stack(list(rates))
    low, high = torch.relu(p * r - den), torch.relu(den - (1 - p + p * r))
    return gamma * (low.square().mean() + high.square().mean())
