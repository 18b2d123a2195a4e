# SPDX-License-Identifier: MIT
"""LARS: SGD whose step is scaled per tensor by ||p|| / ||g|| (You et al. 2017, eq. 6)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

from solo.compat import foreach_add, foreach_add_, foreach_mul_, foreach_norm
from solo.errors import ConfigError


class LARS(Optimizer):
    """SGD with layer-wise adaptive rate scaling and momentum (You et al., 2017).

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
        """Perform one optimizer step and return what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            plain = [p for p in params if p.ndim == 1 and group["exclude_bias_n_norm"]]
            adapted = [p for p in params if p.ndim != 1 or not group["exclude_bias_n_norm"]]
            if plain:
                self._descend(plain, [p.grad for p in plain], group)
            if adapted:
                self._descend(adapted, _adapted(adapted, group), group)
        return loss

    def _descend(self, params: list[Tensor], steps: list[Tensor], group: dict) -> None:
        momentum = group["momentum"]
        if momentum != 0:
            buffers = self._averaged(params, steps, group)
            nesterov = group["nesterov"]
            steps = foreach_add(steps, buffers, alpha=momentum) if nesterov else buffers
        foreach_add_(params, steps, alpha=-group["lr"])

    def _averaged(self, params: list[Tensor], steps: list[Tensor], group: dict) -> list[Tensor]:
        """The momentum buffers after these steps; a tensor's first step is its first average."""
        old = [i for i, p in enumerate(params) if "momentum_buffer" in self.state[p]]
        buffers = [self.state[params[i]]["momentum_buffer"] for i in old]
        if buffers:
            foreach_mul_(buffers, group["momentum"])
            foreach_add_(buffers, [steps[i] for i in old], alpha=1 - group["dampening"])
        for p, step in zip(params, steps, strict=True):
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = step.clone()
        return [self.state[p]["momentum_buffer"] for p in params]


def _adapted(params: list[Tensor], group: dict) -> list[Tensor]:
    """d of each tensor. A few calls for all of them, and nothing waits for the host."""
    weight_decay, lr = group["weight_decay"], group["lr"]
    grads = [p.grad for p in params]
    p_norm = torch.stack(foreach_norm(params))
    g_norm = torch.stack(foreach_norm(grads))
    ratio = group["eta"] * p_norm / (g_norm + weight_decay * p_norm + group["eps"])
    if group["clip_lr"]:
        ratio = (ratio / lr).clamp(max=1.0) if lr else torch.ones_like(ratio)
    # All weights zero: d = g. All gradients zero: d = g = 0, without weight decay.
    ratio = torch.where(p_norm != 0, ratio, 1.0) * (g_norm != 0)
    steps = foreach_add(grads, params, alpha=weight_decay)
    foreach_mul_(steps, list(ratio.unbind()))
    return list(steps)
