# SPDX-License-Identifier: MIT
"""SparseGPT (Frantar and Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in
One-Shot", 2023): layer-wise least squares.

The columns of a weight matrix are pruned from left to right; the error that a pruned weight makes
in the layer's output is taken over by the columns to its right, with the inverse of the inputs'
second moments (Eq. 3 and 4, Algorithm 1). At high sparsity these greedy choices can be worse than
those of magnitude; `refine` then finds the least squares of either mask.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: columns whose mask is chosen together
BLOCK = 128
#: share of the mean diagonal that is added to it
DAMPING = 0.01

#: (scores (rows, columns), first column) -> mask of the same shape, 1 = kept
Choose = Callable[[Tensor, int], Tensor]


def relative_error(old: Tensor, new: Tensor, second: Tensor) -> float:
    """Mean squared error of a layer's output over its mean square: |(W - W') X|^2 / |W X|^2.

    Args:
        old: (groups, rows, d).
        new: the same shape.
        second: (groups, d, d), mean of x x^T.
    """
    difference = (old - new).double()
    total = (old.double() @ second.double() * old).sum()
    wrong = (difference @ second.double() * difference).sum()
    return float(wrong / total.clamp(min=torch.finfo(torch.float64).tiny))


def factor(second: Tensor, damping: float = DAMPING) -> tuple[Tensor, Tensor]:
    """The upper Cholesky factor of the inverse of the damped second moments.

    Args:
        second: (d, d), mean of x x^T.
        damping: see `DAMPING`; raised tenfold as long as the matrix cannot be factored.

    Returns:
        (U, dead): U (d, d) with U^T U = (second + damping * mean diagonal * I)^-1, and the inputs
        that are always zero as bool (d,).
    """
    dead = second.diagonal() == 0
    damped = second.double().clone()
    diagonal = damped.diagonal()
    mean = diagonal[~dead].mean() if (~dead).any() else torch.ones((), dtype=torch.float64)
    diagonal += damping * mean
    for _ in range(6):
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            inverse = torch.cholesky_inverse(lower)
            upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
        if not failed:
            return upper.to(second.dtype), dead
        damping *= 10
        diagonal += damping * mean
    raise FloatingPointError("the inputs of this layer are not finite")


@torch.no_grad()
def refine(rows: Tensor, new: Tensor, mask: Tensor, second: Tensor, steps: int = 20) -> Tensor:
    """Move the kept weights towards the least squares of their mask: conjugate gradients by row.

    The error `(W - V) second (W - V)^T` of a row falls in every step.

    Args:
        rows: the dense weights W (rows, d).
        new: where to start, zero under `mask`; it stays as it is.
        mask: bool (rows, d), 1 = kept.
        second: (d, d), mean of x x^T.
        steps: of conjugate gradients, preconditioned by the diagonal.
    """
    new, scale = new.clone(), second.diagonal().clamp(min=torch.finfo(second.dtype).tiny)
    residual = ((rows - new) @ second).masked_fill_(~mask, 0)
    scaled = residual / scale
    direction, length = scaled, (residual * scaled).sum(1, keepdim=True)
    for _ in range(steps):
        image = (direction @ second).masked_fill_(~mask, 0)
        curvature = (direction * image).sum(1, keepdim=True)
        step = torch.where(curvature > 0, length / curvature, 0)
        new += step * direction
        residual = residual - step * image
        scaled = residual / scale
        last, length = length, (residual * scaled).sum(1, keepdim=True)
        direction = scaled + torch.where(last > 0, length / last, 0) * direction
    return new


@torch.no_grad()
def prune(rows: Tensor, second: Tensor, choose: Choose) -> tuple[Tensor, Tensor]:
    """Prune one weight matrix and correct what stays.

    Args:
        rows: (rows, d).
        second: (d, d), mean of x x^T of its inputs.
        choose: from the scores w^2 / [U]_jj^2 of some consecutive columns to their mask.

    Returns:
        (new rows (rows, d) with pruned weights exactly zero, mask bool (rows, d)).
    """
    upper, dead = factor(second)
    rows = rows.detach().to(upper.dtype).clone()
    rows[:, dead] = 0
    mask = torch.ones_like(rows, dtype=torch.bool)
    for start in range(0, rows.shape[1], BLOCK):
        end = min(start + BLOCK, rows.shape[1])
        part, inverse = rows[:, start:end], upper[start:end, start:end]
        kept = choose(part.square() / inverse.diagonal().square(), start)
        errors = torch.zeros_like(part)
        for j in range(end - start):
            errors[:, j] = part[:, j] * ~kept[:, j] / inverse[j, j]
            part[:, j:] -= errors[:, j, None] * inverse[None, j, j:]
            part[:, j] *= kept[:, j]
        rows[:, end:] -= errors @ upper[start:end, end:]
        mask[:, start:end] = kept
    return rows.masked_fill_(~mask, 0), mask
