# SPDX-License-Identifier: MIT
"""VICReg-Gating and VICReg-Dual (Krishna et al.): a gated and a dense network in one encoder.

Loss added to the method's own (section 11 of the specification):
    L_G = lambda (rho - t_d)^2         rho: MACs of the gated pass over those of the dense network
    L_b                                bounds of single layers, widening with the epochs
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from solo.errors import ConfigError
from solo.utils import ranks
from solo.utils.views import View
from sparse_ext.gating.branches import Pass
from sparse_ext.gating.method import GatingMethod
from sparse_ext.gating.methods.channel.blocks import GATED, GatedBlock, gate_block
from sparse_ext.gating.methods.channel.losses import bound_loss, budget_loss
from sparse_ext.gating.residual import residual_blocks
from sparse_ext.masks.patching import PatchRule, apply

STEM = "conv1"


class ChannelGating(GatingMethod):
    """Every view through the gates; one set of batch norms (`vicreg_gating`)."""

    gated = ("gated",)
    separate_bn = False
    warmup = 0

    def branch_of(self, view: View, epoch: int) -> str:
        """The branch of a view: every view goes through the gated one."""
        return "gated"

    #: globs of the blocks to gate
    blocks: tuple[str, ...] = ("*",)

    def patch(self, backbone: nn.Module) -> Mapping[str, Any]:
        """Put gates into every residual block of `backbone`, in place."""
        residual_blocks(backbone, self.config.name)  # or it says that there are none
        rule = PatchRule(
            self.config.name,
            tuple(GATED),
            lambda block: gate_block(block, self.config, self.separate_bn),
            self.blocks,
        )
        return apply([rule], backbone)

    def counts(self, name: str) -> bool:
        """All convolutions, with or without the stem."""
        return self.config.include_stem or name.rpartition(".")[2] != STEM

    def losses(self, gating: Any, module: Any, views: Sequence[Tensor]) -> dict[str, Tensor]:
        """L_G and L_b, summed over the gated passes."""
        config, context = self.config, gating.context
        passes = [done for done in context.tape.values() if done.branch == "gated"]
        if not passes:
            return {}
        terms = {"budget_loss": sum(self._budget(done) for done in passes)}
        if config.gamma > 0:
            epoch = context.epoch - self.warmup
            terms["bound_loss"] = sum(
                bound_loss(_rates(done), config.budget, epoch, config.gamma, config.alpha)
                for done in passes
            )
        return terms  # type: ignore[return-value]

    def _budget(self, done: Pass) -> Tensor:
        rho = ranks.mean_with_own_gradient(done.rho) if self.config.sync_flops else done.rho
        return budget_loss(rho, self.config.budget, self.config.lamb)

    def gate_parameters(self, backbone: nn.Module) -> Iterable[nn.Parameter]:
        """All of every gate: no weight decay."""
        for block in backbone.modules():
            if isinstance(block, GatedBlock):
                for name in block.gates:
                    yield from getattr(block, name).parameters()

    def check(self, done: Pass, layers: Mapping[str, Any]) -> None:
        """The budget must leave room for what is never gated."""
        floor = self.floor(done, layers)
        if self.config.budget <= floor:
            raise ConfigError(
                f"gating.budget={self.config.budget} cannot be reached: with every gate closed, "
                f"what is never gated (stem, shortcuts, the gates themselves) still takes "
                f"{floor:.4f} of the dense network's MACs. Set gating.budget above that floor."
            )

    def floor(self, done: Pass, layers: Mapping[str, Any]) -> float:
        """The ratio rho of the encoder's cost when all gates are closed."""
        gates = sum(block.gate_macs for block in layers.values())
        return (sum(done.plain.values()) + gates) / done.macs_dense


class ChannelDual(ChannelGating):
    """Views alternate between the gated and the dense branch, the first one gated."""

    @property
    def separate_bn(self) -> bool:  # type: ignore[override]
        """Batch norms per branch; two encoders have them in any case."""
        return self.config.separate_bn and self.config.encoders == 1

    @property
    def warmup(self) -> int:  # type: ignore[override]
        """Epochs in which every view is dense; the bounds begin to widen after them."""
        return self.config.warmup_epochs if self.config.warmup_gate else 0

    def branch_of(self, view: View, epoch: int) -> str:
        """Views 1, 3, ... gated, 2, 4, ... dense, in the momentum encoder, too."""
        if epoch < self.warmup:
            return "dense"
        return "dense" if view.index % 2 else "gated"

    @property
    def two_encoders(self) -> bool:
        """Whether dense and gated views have encoders of their own (Dual paper, Table 4)."""
        return self.config.encoders == 2

    @property
    def blocks(self) -> tuple[str, ...]:  # type: ignore[override]
        """Of two encoders only one is gated."""
        return ("gated.*",) if self.two_encoders else ("*",)

    def idle(self, backbone: Any, branches: set[str]) -> list[nn.Parameter]:
        """What belongs to the branches that have not run: an encoder, or gates and norms."""
        unused = {"gated", "dense"} - branches
        if self.two_encoders:
            return [p for branch in unused for p in getattr(backbone, branch).parameters()]
        blocks = (module for module in backbone.modules() if isinstance(module, GatedBlock))
        return [p for block in blocks for p in _branch_parameters(block, unused)]


def _rates(done: Pass) -> list[Tensor]:
    """Share of open gates of every gate of a pass."""
    return [rate for usage in done.layers.values() for rate in usage.figures.values()]


def _branch_parameters(block: Any, branches: set[str]) -> list[nn.Parameter]:
    """Parameters of a block that only these branches use."""
    own = [name for name, _ in block.named_children() if name.endswith("_gated")]
    modules = []
    if "gated" in branches:
        modules += [getattr(block, name) for name in (*own, *block.gates)]
    if "dense" in branches:
        modules += [getattr(block, name.removesuffix("_gated")) for name in own]
    return [parameter for module in modules for parameter in module.parameters()]
