# SPDX-License-Identifier: MIT
"""The one fixed input of each subject of docs/peers.md."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def views() -> tuple[Tensor, Tensor]:
    """Two views of 8 samples with 4 features: sin(k) and cos(k), k = 0..31 row by row."""
    k = torch.arange(32.0).view(8, 4)
    return k.sin(), k.cos()


def contrast() -> tuple[Tensor, Tensor, Tensor]:
    """4 queries, 4 keys and a queue of 8: the views' first rows and sin(100 + k), as unit rows."""
    queue = (100 + torch.arange(32.0)).view(8, 4).sin()
    query, key = (view[:4] for view in views())
    return F.normalize(query, dim=1), F.normalize(key, dim=1), F.normalize(queue, dim=1)


LABELS = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]).repeat(
    2
)  # of the samples of both views, for SupCon
TEST = torch.tensor([[1.0, 0.0]])  # what kNN classifies, with all train samples as neighbours
TRAIN = torch.tensor([[0.8, 0.6], [0.6, 0.8], [0.6, -0.8]])
NEIGHBOURS = {
    "unit length": (TRAIN, torch.tensor([0, 1, 1])),
    "class 1 twice as long": (TRAIN * torch.tensor([[1.0], [2.0], [2.0]]), torch.tensor([0, 1, 1])),
    "tie": (TRAIN[1:], torch.tensor([1, 0])),
}


def lars_steps(make: Callable[[nn.Parameter, float], Any]) -> dict[str, float]:
    """Lengths of a first step at rate 1 on weights (3, 4) with the gradient (1, 0), or (0, 0)."""
    steps = {}
    for name, shape, decay, slope in (
        ("matrix, decay 0.1", (1, 2), 0.1, 1.0),
        ("matrix, no decay", (1, 2), 0.0, 1.0),
        ("vector, decay 0.1", (2,), 0.1, 1.0),
        ("matrix, decay 0.1, gradient 0", (1, 2), 0.1, 0.0),
    ):
        start = torch.tensor([3.0, 4.0]).view(shape)
        weight = nn.Parameter(start.clone())
        weight.grad = torch.tensor([slope, 0.0]).view(shape)
        make(weight, decay).step()
        steps[name] = (weight.detach() - start).norm()
    return steps


def running_mean(update: Callable[[nn.Module, nn.Module], Any]) -> Tensor:
    """The momentum network's running mean, 0, after one update at 0.9 from an online one with 1."""
    online, momentum = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    online.running_mean.fill_(1.0)
    return (update(online, momentum) or momentum).running_mean


def images_and_views() -> Tensor:
    """4 images of 2 views, (4, 2, 4): sin(10 i + d), and a tenth of sin(7 k) between the views."""
    images = (10 * torch.arange(4.0)[:, None] + torch.arange(4.0)).sin()
    return images[:, None] + (7 * torch.arange(32.0)).view(4, 2, 4).sin() / 10


def alive() -> Tensor:
    """Features of which 32 of 1,024 dimensions are alive, orthogonal and of equal size."""
    return torch.diag((torch.arange(1024) < 32).float())


def centred_loss(loss: nn.Module, step: Callable[[], Tensor]) -> dict[str, Any]:
    """The centre's first element after one step, and the same batch's loss in the second."""
    step()
    centre = loss.center.flatten()[0].item()
    return {"centre": centre, "loss": step()}
