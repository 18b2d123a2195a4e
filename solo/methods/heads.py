# SPDX-License-Identifier: MIT
"""Projectors and predictors: every method's multi-layer perceptron comes from `mlp`.

The order of the layers fixes the state-dict keys, so it is part of the interface.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from solo.compat import weight_norm
from solo.utils.momentum import initialize_momentum_params

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
LastNorm = Literal["none", "affine", "plain"]


def mlp(
    *dims: int,
    norm: bool = True,
    activation: Callable[[], nn.Module] = nn.ReLU,
    bias: bool = True,
    last_bias: bool | None = None,
    last_norm: LastNorm = "none",
) -> nn.Sequential:
    """Build a head: linear layers with batch norm and activation between them.

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


@dataclass(frozen=True)
class Head:
    """A head of a method: what it reads, what it adds to a forward pass, how it trains.

    Args:
        output: key of its output in the dictionary that a forward pass returns; None for a head
            that the method applies itself.
        of: key of what it reads: `feats`, or the output of a head that stands before it.
        of_unit: read the l2-normalised rows of `of`; otherwise what the head before it computed.
        unit: return l2-normalised rows.
        momentum_output: key of the momentum copy's output; None means `output`.
        momentum_unit: l2-normalise the momentum copy's rows; None means `unit`.
        trained: whether the optimizer gets its parameters.
        group: extra keys of its parameter group, such as `static_lr`.
    """

    output: str | None = None
    of: str = "feats"
    of_unit: bool = False
    unit: bool = False
    momentum_output: str | None = None
    momentum_unit: bool | None = None
    trained: bool = True
    group: Mapping[str, Any] = field(default_factory=dict)

    def momentum(self) -> Head:
        """The momentum copy of this head, as a head of its own."""
        unit = self.unit if self.momentum_unit is None else self.momentum_unit
        return Head(self.momentum_output or self.output, self.of, self.of_unit, unit)


def apply_heads(
    feats: Tensor, heads: Mapping[str, Head], modules: Callable[[str], nn.Module]
) -> dict[str, Tensor]:
    """Features through the heads, each after the one that it reads.

    Args:
        feats: (N, F).
        heads: by attribute name.
        modules: the module of an attribute name.

    Returns:
        the outputs by `Head.output`.
    """
    raw, unit = {"feats": feats}, {}
    outputs = {}
    for name, head in heads.items():
        if head.output is None:
            continue
        x = (unit if head.of_unit else raw)[head.of]
        raw[head.output] = outputs[head.output] = modules(name)(x)
        if head.unit:
            unit[head.output] = outputs[head.output] = F.normalize(raw[head.output], dim=-1)
    return outputs


def simsiam_projector(fan_in: int, hidden: int, out: int) -> nn.Sequential:
    """SimSiam's projector; its last bias exists but is frozen (the BatchNorm cancels it)."""
    projector = mlp(fan_in, hidden, hidden, out, bias=False, last_bias=True, last_norm="plain")
    projector[6].bias.requires_grad = False
    return projector


class WeightNormLinear(nn.Module):
    """Bias-free linear layer with rows `weight_g * v / |v|` (Salimans & Kingma 2016, eq. 2).

    Parameters are called `weight_g` (out, 1), initially ones, and `weight_v` (out, in), as by
    torch's former `weight_norm`, so that existing checkpoints fit.

    Args:
        fan_in: input dimension.
        fan_out: number of rows.
        learn_norm: train `weight_g`; otherwise the rows keep norm 1.
    """

    def __init__(self, fan_in: int, fan_out: int, learn_norm: bool = False):
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(fan_out, 1), requires_grad=learn_norm)
        self.weight_v = nn.Parameter(nn.Linear(fan_in, fan_out, bias=False).weight.detach())

    @property
    def weight(self) -> Tensor:
        """The effective weight of shape (out, in): direction times magnitude."""
        return weight_norm(self.weight_v, self.weight_g, 0)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply features (..., in) with the effective weight, to (..., out)."""
        return F.linear(x, self.weight)


def momentum_pair(build: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    """An online head and its frozen momentum copy."""
    online, momentum = build(), build()
    initialize_momentum_params(online, momentum)
    return online, momentum


def has_batch_norm(module: nn.Module) -> bool:
    """Whether `module` has a layer whose output for an image depends on the batch."""
    return any(isinstance(m, BATCH_NORMS) for m in module.modules())


@torch.no_grad()
def spread(z: Sequence[Tensor]) -> Tensor:
    """Collapse gauge: std over the batch of l2-normalised (N, D) outputs; 1/sqrt(D) when spread.

    Averaged over dimensions and views; 0 when all images get the same output.
    """
    return F.normalize(torch.stack(list(z)), dim=-1).std(dim=1).mean()
