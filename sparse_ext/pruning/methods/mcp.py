# SPDX-License-Identifier: MIT
"""MCP (Pan et al., "Momentum Contrastive Pruning", 2022): a *reconstruction*.

Only its abstract and ADMM pruning in general were at hand; figures of this method are figures of a
reconstruction. Phase 1 trains with the penalty rho/2 |W - Z + U|^2 on every layer; each epoch
Z = Proj(W + U) keeps the filters of largest L2 norm, and U grows by W - Z. Phase 2 fine-tunes: the
subnet is the momentum encoder under Proj, with batch norm statistics of its own, and follows its
average on the kept filters; the unpruned momentum encoder goes on serving keys. Evaluate the
subnet with `eval_encoder=momentum`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from solo.errors import ConfigError
from solo.utils.encoders import encoders_of
from sparse_ext.masks.dual_norms import make_dual
from sparse_ext.masks.encoder import Encoder
from sparse_ext.masks.living_weights import Branches, branch, make_functional
from sparse_ext.pruning.constant_sparsity import Constant
from sparse_ext.pruning.dense_start import load_dense
from sparse_ext.pruning.log import log
from sparse_ext.pruning.pruner import Needs
from sparse_ext.pruning.scores.scorers import magnitude
from sparse_ext.pruning.units import Kept

DENSE = Branches(first=False, others=False, evaluation=False)
SUBNET = Branches(first=False, others=False, evaluation=True)  # keys are dense, evaluation is not


class MCP(Constant):
    """ADMM towards few filters, then a subnet of the momentum encoder."""

    saved = ("z", "u", "aims")

    @classmethod
    def needs(cls, config: Any, shared: bool) -> Needs:
        """Weights live on under the masks of the subnet."""
        return Needs(latents=False, stored_zeros=False)

    @classmethod
    def prepare(cls, config: Any, module: Any, encoders: list[Encoder]) -> list[Encoder]:
        """The subnet shares the momentum encoder's weights, not its batch norm statistics."""
        if len(encoders) == 1:
            raise ConfigError(
                f"sparse.name=mcp prunes the momentum encoder, and {type(module).__name__} has "
                f"none. Use it with MoCo, or another method with a momentum encoder."
            )
        _, teacher = encoders_of(module).values()
        make_dual([teacher], SUBNET, affine=False)
        momentum = make_functional(encoders[1], SUBNET)
        teacher.register_forward_hook(_SubnetStatistics(momentum))
        return [make_functional(encoders[0], DENSE), momentum]

    def enter(self, module: Any, fresh: bool) -> None:
        """Phase 0 is another run: take over its weights."""
        make_dual([list(encoders_of(module).values())[1]], SUBNET, affine=False)
        if fresh:
            load_dense(module, self.config.dense_checkpoint, "mcp")

    def set_up(self) -> None:
        """The online encoder stays dense; the subnet exists after the epochs of ADMM."""
        log.warning("mcp is a reconstruction: the paper's code and full text were not at hand.")
        self.begins, self.finals = [0.0, 0.0], [0.0, self.config.final]
        self.admm_epochs = max(1, math.ceil(self.config.admm_end * self.clock.epochs))
        self.z: dict[str, Tensor] = {}
        self.u: dict[str, Tensor] = {}

    @property
    def rho(self) -> float:
        """Weight of the penalty in this epoch."""
        first, last = self.config.rho_start, self.config.rho_end
        return first * (last / first) ** (self.epoch / max(1, self.admm_epochs - 1))

    def proj(self, values: Mapping[str, Tensor]) -> Kept:
        """Filters of largest L2 norm, the same share in every layer."""
        squares = {name: magnitude(value).square() for name, value in values.items()}
        energy = self.units.pool(squares)
        return self.units.largest_per_layer(energy, self.config.final, "uniform")

    @torch.no_grad()
    def begin_batch(self, epoch: int, optimizer: Optimizer | None = None) -> bool:
        """Phase 1: Z and U at the start. Phase 2: the subnet, once."""
        if epoch < self.admm_epochs:
            if not self.z:
                self.u = {n: torch.zeros_like(w) for n, w in self.online.weights.items()}
                self._project()
            return False
        if not self.z and self.aims == self.finals:
            return False
        self.z, self.u, self.aims = {}, {}, list(self.finals)
        kept = [self.initial_masks(self.online, 0.0), self.proj(self.momentum.weights)]  # type: ignore[union-attr]
        self.apply(kept, optimizer)
        return True

    @torch.no_grad()
    def adjust_gradients(self, optimizer: Optimizer) -> None:
        """g + rho (W - Z + U), in phase 1."""
        for name in self.z:
            weight = self.online.layers[name].weight
            weight.grad.add_(weight - self.z[name] + self.u[name], alpha=self.rho)

    @torch.no_grad()
    def end_epoch(self, epoch: int) -> dict[str, float]:
        """U += W - Z, with the Z of W + U; how far weights are from their projection."""
        if not self.z:
            return {}
        self._project()
        for name, weight in self.online.weights.items():
            self.u[name] += weight - self.z[name]
        gap = sum((w - self.z[n]).square().sum() for n, w in self.online.weights.items())
        return {"admm_distance": float(gap) ** 0.5, "admm_rho": self.rho}

    def _project(self) -> None:
        sums = {name: w + self.u[name] for name, w in self.online.weights.items()}
        masks = self.units.expand(self.proj(sums), self.online)
        self.z = {name: total * masks[name] for name, total in sums.items()}


class _SubnetStatistics:
    """Shows the subnet every batch that trains, so that it has batch norm statistics."""

    def __init__(self, momentum: Encoder) -> None:
        self.momentum = momentum

    @torch.no_grad()
    def __call__(self, module: Any, inputs: tuple, output: Any) -> None:
        if module.training and self.momentum.masks.nnz < self.momentum.masks.n:
            with branch(masked=True):
                module.forward(*inputs)
