# SPDX-License-Identifier: MIT
"""LARS: SGD whose step is scaled per tensor by ||p|| / ||g|| (You et al. 2017, eq. 6)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

from solo.errors import ConfigError


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling with momentum.

    A tensor is adapted unless it is 1-d and `exclude_bias_n_norm` is set, or its weights or its
    gradients are all zero. Adapted: d = (g + wd p) r with r = eta ||p|| / (||g|| + wd ||p|| + eps)
    (at most `lr` with `clip_lr`); otherwise d = g, without weight decay.

    Args:
        params: parameters or groups.
        lr: learning rate.
        momentum, dampening, weight_decay, nesterov: as in `torch.optim.SGD`.
        eta: trust coefficient.
        eps: keeps the ratio finite.
        clip_lr: r <- min(r / lr, 1), so that the step never exceeds SGD's.
        exclude_bias_n_norm: leave 1-d tensors unadapted.

    Raises:
        ConfigError: for a negative value, or nesterov without momentum or with dampening.
    """

    def __init__(
        self,
        params,
        lr: float | None = None,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        eta: float = 1e-3,
        eps: float = 1e-8,
        clip_lr: bool = False,
        exclude_bias_n_norm: bool = False,
    ):
        if lr is None:
            raise ConfigError("LARS needs a learning rate: give lr")
        numbers = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "eta": eta,
            "eps": eps,
        }
        for name, value in numbers.items():
            if value < 0:
                raise ConfigError(f"LARS: {name} must not be negative, got {value}")
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ConfigError("LARS: nesterov needs a positive momentum and no dampening")
        defaults = {
            **numbers,
            "dampening": dampening,
            "nesterov": nesterov,
            "clip_lr": clip_lr,
            "exclude_bias_n_norm": exclude_bias_n_norm,
        }
        super().__init__(params, defaults)

    def __setstate__(self, state):
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("nesterov", False)

    @torch.no_grad()
    def step(self, closure=None):
        """One step; returns what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            for p, (scale, decay) in zip(params, _coefficients(params, group), strict=True):
                self._step_one(p, p.grad * scale + p * decay, group)
        return loss

    def _step_one(self, p: Tensor, d: Tensor, group: dict) -> None:
        momentum = group["momentum"]
        if momentum != 0:
            state = self.state[p]
            buffer = state.get("momentum_buffer")
            if buffer is None:
                buffer = state["momentum_buffer"] = d.clone()
            else:
                buffer.mul_(momentum).add_(d, alpha=1 - group["dampening"])
            d = d.add(buffer, alpha=momentum) if group["nesterov"] else buffer
        p.add_(d, alpha=-group["lr"])


def _coefficients(params: list[Tensor], group: dict) -> list[tuple[Tensor | float, Tensor | float]]:
    """(a, b) per tensor with d = a g + b p; device tensors, so that nothing waits for the host."""
    weight_decay, lr = group["weight_decay"], group["lr"]
    coefficients: list[tuple[Tensor | float, Tensor | float]] = []
    norms = zip(
        torch._foreach_norm(params) if params else [],
        torch._foreach_norm([p.grad for p in params]) if params else [],
        strict=True,
    )
    for p, (p_norm, g_norm) in zip(params, norms, strict=True):
        if p.ndim == 1 and group["exclude_bias_n_norm"]:
            coefficients.append((1.0, 0.0))
            continue
        ratio = group["eta"] * p_norm / (g_norm + weight_decay * p_norm + group["eps"])
        if group["clip_lr"]:
            ratio = (ratio / lr).clamp(max=1.0) if lr else torch.ones_like(ratio)
        adapted = (p_norm != 0) & (g_norm != 0)
        scale = torch.where(adapted, ratio, torch.ones_like(ratio))
        decay = torch.where(adapted, ratio * weight_decay, torch.zeros_like(ratio))
        coefficients.append((scale, decay))
    return coefficients
