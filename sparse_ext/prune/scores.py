# SPDX-License-Identifier: MIT
"""What a weight of a trained encoder is worth, without labels and without training.

A larger score is kept. Matrices are those of `sparse_ext.prune.layer_inputs.matrix`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from solo.losses.simclr import simclr_loss_func


def lamp(weight: Tensor) -> Tensor:
    """Layer-adaptive magnitude (Lee et al., "Layer-adaptive Sparsity for the Magnitude-based
    Pruning", 2021, Eq. 4): w^2 over the sum of the squares of all weights of its layer that are
    not smaller. Scores of different layers can be ranked together.

    >>> lamp(torch.tensor([1.0, -3.0, 2.0]))  # 1/14, 9/9, 4/13
    tensor([0.0714, 1.0000, 0.3077])

    Args:
        weight: of one layer, any shape.

    Returns:
        float32 of the same shape, in [0, 1]; equal magnitudes are ordered by position.
    """
    squares = weight.detach().float().square().flatten()
    order = squares.argsort(descending=True, stable=True)
    not_smaller = squares[order].double().cumsum(0).clamp(min=torch.finfo(torch.float64).tiny)
    score = torch.empty_like(squares)
    score[order] = (squares[order] / not_smaller).float()
    return score.reshape(weight.shape)


def wanda(rows: Tensor, second: Tensor) -> Tensor:
    """|w| times the l2 norm of its input (Sun et al., "A Simple and Effective Pruning Approach for
    Large Language Models", 2023, Eq. 1), to be compared within an output row.

    Args:
        rows: (groups, rows, d).
        second: (groups, d, d), mean of x x^T.

    Returns:
        (groups, rows, d), up to the constant factor sqrt(samples).
    """
    norms = second.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    return rows.detach().float().abs() * norms.unsqueeze(1)


def two_views(images: Tensor, generator: torch.Generator) -> Tensor:
    """Two views of each image: shifted crops and flips, (2 N, C, H, W), views one after the other.

    Args:
        images: (N, C, H, W).
        generator: of the draws, on the CPU.
    """
    side = images.shape[-1]
    margin = max(1, side // 8)
    views = []
    for _ in range(2):
        padded = nn.functional.pad(images, (margin,) * 4, mode="reflect")
        top, left, flip = torch.randint(0, 2 * margin + 1, (3,), generator=generator).tolist()
        view = padded[..., top : top + images.shape[-2], left : left + side]
        views.append(view.flip(-1) if flip % 2 else view)
    return torch.cat(views)


def taylor(
    encoder: nn.Module, layers: dict[str, Any], batches: list[Tensor], seed: int = 0
) -> dict[str, Tensor]:
    """(w g)^2, the squared first-order change of a loss when a weight goes (Molchanov et al.,
    2019, Eq. 8), with the gradient g of a loss that needs no labels: NT-Xent (SimCLR, Eq. 1,
    temperature 0.1) between the features of two views of each image; mean over batches.

    Args:
        encoder: in evaluation mode; its gradients are left as they were.
        layers: whose weights are scored, by name.
        batches: normalised images, each batch (N, 3, H, W) with N of at least 2.
        seed: of the views.

    Returns:
        score per layer, float32, of the weight's shape.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = [layer.weight for layer in layers.values()]
    states = [weight.requires_grad for weight in weights]
    scores = {name: torch.zeros_like(layer.weight).float() for name, layer in layers.items()}
    for weight in weights:
        weight.requires_grad_(True)
    try:
        for images in batches:
            features = encoder(two_views(images, generator)).float()
            pairs = torch.arange(len(images), device=features.device).repeat(2)
            loss = simclr_loss_func(features, pairs, temperature=0.1)
            grads = torch.autograd.grad(loss, weights, allow_unused=True)
            for (name, layer), grad in zip(layers.items(), grads, strict=True):
                if grad is not None:
                    scores[name] += (layer.weight.detach() * grad).float().square() / len(batches)
    finally:
        for weight, state in zip(weights, states, strict=True):
            weight.requires_grad_(state)
    return scores
