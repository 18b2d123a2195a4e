# SPDX-License-Identifier: MIT
"""What a weight is worth: pure functions of tensors. A larger score is kept.

Ranking belongs to `sparse_ext.allocation.keep_topk`, reduction over ranks to the caller: gradients
that come in are averaged over all ranks already, and unscaled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from solo.compat import foreach_lerp_
from solo.errors import ConfigError
from sparse_ext.compat import foreach_abs


def magnitude(weight: Tensor) -> Tensor:
    """|W| in float32 or wider, of a weight or of its latent value."""
    return _wide(weight.detach()).abs()


def gradient(grad: Tensor) -> Tensor:
    """|g|, the instant score of RigL and GraNet."""
    return _wide(grad.detach()).abs()


@torch.no_grad()
def ema_gradient_(
    scores: Sequence[Tensor],
    grads: Sequence[Tensor],
    history: float,
    finite: Tensor | None = None,
) -> None:
    """score <- history * score + (1 - history) * |g|, in place (SyncCP Eq. 17).

    Args:
        scores: float32, one per layer.
        grads: dense gradients of the same shapes.
        history: weight of the past (gamma_h), in [0, 1). The paper prints 0.1; see A6.
        finite: 0-dim bool; scores stay exactly as they are where it is False. Off the CPU its
            value is not waited for.

    Raises:
        ConfigError: for `history` outside [0, 1).
    """
    if not 0 <= history < 1:
        raise ConfigError(f"history={history!r}: the weight of past gradients lies in [0, 1).")
    if not scores or (finite is not None and finite.device.type == "cpu" and not finite):
        return
    if scores[0].device.type == "cpu":  # layer by layer: new memory for all of them costs more
        for score, grad in zip(scores, grads, strict=True):
            score.lerp_(_wide(grad).abs(), 1 - history)
        return
    new = list(foreach_abs([_wide(grad) for grad in grads]))
    if finite is not None and finite.device.type != "cpu":
        new = [torch.where(finite, n, s) for n, s in zip(new, scores, strict=True)]
    foreach_lerp_(list(scores), new, 1 - history)


def snip(weight: Tensor, grad: Tensor) -> Tensor:
    """|g * W|, the effect of a multiplicative mask on the loss (Lee et al., 2019, SNIP)."""
    return (_wide(weight.detach()) * _wide(grad.detach())).abs()


def first_order(weight: Tensor, grad: Tensor) -> Tensor:
    """g * W, with its sign: its sum over a set of weights is, up to its sign, the first-order
    change of the loss when all of them become zero (Molchanov et al., "Importance Estimation for
    Neural Network Pruning", 2019, section 3)."""
    return _wide(weight.detach()) * _wide(grad.detach())


def squared(sums: Tensor) -> Tensor:
    """The square of what a unit's weights add up to (Molchanov et al., 2019, Eq. 8)."""
    return sums.square()


def mean_taylor(weight: Tensor, mean: Tensor) -> Tensor:
    """|W| times the running mean of |g|: the first-order change of the loss without its sign,
    averaged over batches."""
    return magnitude(weight) * _wide(mean.detach())


def grasp(weight: Tensor, hessian_gradient: Tensor) -> Tensor:
    """W * (H g) (Wang et al., 2020, GraSP).

    The paper scores -W * (H g) and removes the largest; this is its negative, so that the largest
    are kept, as everywhere here.
    """
    return _wide(weight.detach()) * _wide(hessian_gradient.detach())


def hessian_gradient(
    losses: Iterable[Callable[[], Tensor]], weights: Sequence[Tensor]
) -> list[Tensor]:
    """H g per weight, with g the mean gradient and H the mean Hessian of the losses.

    Each loss is evaluated twice and its graph freed in between, so memory is that of one batch
    under double backward.

    Args:
        losses: functions that compute a scalar loss from `weights`, one per (half) batch. Divide
            logits by the temperature inside (200 for labels, 1 for self-supervised losses).
        weights: all weights whose gradient's flow counts; one that a loss does not depend on
            counts as 0.
    """
    losses = list(losses)
    mean = [torch.zeros_like(w) for w in weights]
    for loss in losses:
        grads = torch.autograd.grad(loss(), weights, materialize_grads=True)
        for total, grad in zip(mean, grads, strict=True):
            total += grad / len(losses)
    products = [torch.zeros_like(w) for w in weights]
    for loss in losses:
        grads = torch.autograd.grad(loss(), weights, create_graph=True, materialize_grads=True)
        inner = torch.stack([(m * g).sum() for m, g in zip(mean, grads, strict=True)]).sum()
        parts = torch.autograd.grad(inner, weights, materialize_grads=True)
        for total, part in zip(products, parts, strict=True):
            total += part / len(losses)
    return products


def _wide(tensor: Tensor) -> Tensor:
    """At least float32: half precision ties at 2^-11 relative."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
