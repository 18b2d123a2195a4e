# SPDX-License-Identifier: MIT
"""What a gated encoder adds to a training step: losses, and a parameter group of its gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from sparse_ext.gating.encoder import Gating, gating_of


def losses(module: Any, views: Sequence[Tensor]) -> dict[str, Tensor]:
    """The method's terms of this step as `gating/<name>`; nothing without gates.

    DDP insists on a gradient for every parameter in every step. Those that no pass of this step
    has used get one of exactly zero, which the callback takes away again before the optimizer.
    """
    gating = gating_of(getattr(module, "backbone", None))
    if gating is None:
        return {}
    terms = gating.method.losses(gating, module, views)
    idle = idle_parameters(module.backbone, gating)
    if idle:
        terms = {**terms, "idle": sum(((p * 0).sum() for p in idle[1:]), (idle[0] * 0).sum())}
    return {f"gating/{name}": term for name, term in terms.items()}


def idle_parameters(backbone: nn.Module, gating: Gating) -> list[nn.Parameter]:
    """Trainable parameters of branches that no pass of this step has taken."""
    used = {done.branch for done in gating.context.tape.values()}
    return [p for p in gating.method.idle(backbone, used) if p.requires_grad]


def parameter_groups(backbone: nn.Module, group: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """`group` without the gates, and a group `<name>_gates` with the method's options for them."""
    gating = gating_of(backbone)
    if gating is None:
        return [group]
    gates = {id(p) for p in gating.method.gate_parameters(backbone)}
    own = [p for p in group["params"] if id(p) in gates]
    rest = [p for p in group["params"] if id(p) not in gates]
    if not own:
        return [group]
    name = f"{group['name']}_gates"
    options = {**group, "name": name, **gating.method.gate_options, "params": own}
    return [{**group, "params": rest}, options]
