# SPDX-License-Identifier: MIT
"""What FBS and DGC share: a saliency layer, picking exactly k channels, the loss."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from solo.utils.views import View
from sparse_ext.gating.encoder import GateConv2d
from sparse_ext.gating.method import GatingMethod


class SaliencyConv2d(GateConv2d):
    """A 1x1 convolution of pooled maps (N, C, 1, 1) that stays float32 under autocast.

    Channels are ranked by its output: in half precision many of them would tie.
    """

    def __init__(self, inputs: int, outputs: int, bias: float | None, groups: int = 1) -> None:
        super().__init__(inputs, outputs, 1, bias=bias is not None, groups=groups)
        nn.init.kaiming_normal_(self.weight)
        if bias is not None:
            nn.init.constant_(self.bias, bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, 1, 1) to (N, outputs, 1, 1), float32."""
        kind = x.device.type
        if not torch.amp.is_autocast_available(kind):
            return super().forward(x.float())
        with torch.autocast(kind, enabled=False):
            return super().forward(x.float())


def keep_largest(scores: Tensor, count: Tensor | int) -> Tensor:
    """Marks exactly `count` entries along the last axis, ties by lowest index.

    Args:
        scores: (..., C).
        count: at most C; may be a 0-dim tensor, so that nothing waits for the host.

    Returns:
        bool of the shape of `scores`.
    """
    order = scores.detach().argsort(dim=-1, descending=True, stable=True)
    return order.argsort(dim=-1) < count


class SaliencyMethod(GatingMethod):
    """One branch, in which each view has its own saliences; their size is a loss."""

    gated = ("gated",)

    @property
    @abstractmethod
    def loss_weight(self) -> float:
        """Weight of the layers' figure `saliency` in the training loss."""

    def branch_of(self, view: View, epoch: int) -> str:
        """The branch of a view: every view goes through the gated one."""
        return "gated"

    def losses(self, gating: Any, module: Any, views: Sequence[Tensor]) -> dict[str, Tensor]:
        """The weighted saliences, summed over layers and passes."""
        found = [
            usage.figures["saliency"]
            for done in gating.context.tape.values()
            for usage in done.layers.values()
        ]
        return {"saliency_loss": self.loss_weight * torch.stack(found).sum()} if found else {}

    def gate_parameters(self, backbone: nn.Module) -> Iterable[nn.Parameter]:
        """The parameters of the saliency networks, which get no weight decay."""
        for module in backbone.modules():
            if isinstance(module, SaliencyConv2d):
                yield from module.parameters()
