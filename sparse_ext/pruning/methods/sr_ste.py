# SPDX-License-Identifier: MIT
"""SR-STE (Zhou et al., "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch",
2021).

The forward pass multiplies a living weight W by the N:M mask of its present magnitudes. The dense
gradient g passes straight through, and pruned weights are pulled to zero:
dW = g + lambda (1 - mask) W. The pull is added once per optimizer step, to the unscaled gradient. A
momentum encoder averages the living weights and has the mask of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer

from sparse_ext.masks.encoder import Encoder, masked
from sparse_ext.masks.living_weights import ALWAYS, make_functional
from sparse_ext.pruning.constant_sparsity import Constant
from sparse_ext.pruning.pruner import Needs


class SRSTE(Constant):
    """The pruner of SR-STE, which makes a new N:M mask after every step."""

    @classmethod
    def needs(cls, config: Any, shared: bool) -> Needs:
        """What the method needs: pruned weights that live on."""
        return Needs(latents=False, stored_zeros=False)

    @classmethod
    def prepare(cls, config: Any, module: Any, encoders: list[Encoder]) -> list[Encoder]:
        """Masks go into the forward passes, with straight-through gradients."""
        return [make_functional(encoder, ALWAYS, straight=True) for encoder in encoders]

    @torch.no_grad()
    def adjust_gradients(self, optimizer: Optimizer) -> None:
        """dW = g + lambda (1 - mask) W."""
        for layer in self.online.layers.values():
            if layer.weight.grad is not None:
                pruned = masked(layer.weight, ~layer.mask)
                layer.weight.grad.add_(pruned, alpha=self.config.decay)

    def after_step(self, optimizer: Optimizer | None = None) -> bool:
        """The online encoder's masks follow its weights; ranks are compared at the epoch's end."""
        self.refresh(self.online)
        self.t += 1
        return False

    def begin_batch(self, epoch: int, optimizer: Optimizer | None = None) -> bool:
        """The momentum encoder has moved since the last step."""
        if self.momentum is not None:
            self.refresh(self.momentum)
        return False

    @torch.no_grad()
    def refresh(self, encoder: Encoder) -> None:
        """N:M masks of the present weights, without waiting for the device."""
        for layer in encoder.layers.values():
            layer.mask.copy_(self.units.granularity.best(layer.weight))  # type: ignore[attr-defined]
