# SPDX-License-Identifier: MIT
"""The settings of gates that switch channels per image (see `sparse_ext.gating.config`)."""

from __future__ import annotations

import typing
from dataclasses import dataclass

from solo.errors import ConfigError
from sparse_ext.gating.config.base import GatingConfig


@dataclass(frozen=True)
class VICRegGatingConfig(GatingConfig):
    """Channel gating of every view (baseline 2 of the Dual paper), with any method of `solo`.

    Attributes:
        budget: t_d, the share of the dense network's MACs that the gated one may use, in (0, 1).
        lamb: lambda, weight of the budget loss (Eq. 3).
        gamma: weight of the bound loss, which the authors' code has and the paper has not; 0 = off.
        alpha: rate per epoch at which the bounds of single layers widen.
        temperature: of the gates' sigmoid, in training.
        reduction: the hidden layer of a gate has C // reduction channels.
        gate_bias_init: initial bias of a gate's last layer (2.0 starts open); None = no bias.
        include_stem: count the first convolution on both sides of the ratio that is the budget.
        sync_flops: average that ratio over the processes before it is squared.
    """

    BRANCHES: typing.ClassVar[tuple[str, ...]] = ("gated",)

    name: str = "vicreg_gating"
    eval: str = "gated"
    budget: float = 0.3
    lamb: float = 5.0
    gamma: float = 1.0
    alpha: float = 0.02
    temperature: float = 2 / 3
    reduction: int = 4
    gate_bias_init: float | None = None
    include_stem: bool = True
    sync_flops: bool = False

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.budget < 1:
            raise ConfigError(
                f"gating.budget={self.budget} must be between 0 and 1: the share of the dense "
                f"network's MACs that the gated one may use (0.3 for the paper's 30%)."
            )
        for key in ("lamb", "gamma", "alpha"):
            if getattr(self, key) < 0:
                raise ConfigError(f"gating.{key}={getattr(self, key)} must not be negative.")
        if self.temperature <= 0 or self.reduction < 1:
            raise ConfigError(
                f"gating.temperature={self.temperature} must be positive and "
                f"gating.reduction={self.reduction} at least 1."
            )


@dataclass(frozen=True)
class VICRegDualConfig(VICRegGatingConfig):
    """View 1 gated, view 2 dense, through the same encoder (VICReg-Dual), with any method.

    Attributes:
        encoders: 1 = both branches share the encoder; 2 = one of each kind (Table 4).
        separate_bn: every branch has batch norms of its own in the blocks (Table 6).
        warmup_gate: both views are dense for the first `warmup_epochs` epochs (Table 6).
        warmup_epochs: see `warmup_gate`.
    """

    BRANCHES: typing.ClassVar[tuple[str, ...]] = ("gated", "dense")

    name: str = "vicreg_dual"
    encoders: int = 1
    separate_bn: bool = True
    warmup_gate: bool = False
    warmup_epochs: int = 10

    def __post_init__(self):
        super().__post_init__()
        if self.encoders not in (1, 2):
            raise ConfigError(f"gating.encoders={self.encoders} must be 1 or 2.")
        if self.warmup_epochs < 0:
            raise ConfigError(f"gating.warmup_epochs={self.warmup_epochs} must not be negative.")

    def obstacle_to_masks(self) -> str:
        """One sparsity cannot be meant for two encoders of different kinds."""
        if self.encoders == 1:
            return ""
        return "with two encoders it is open which one becomes sparse: set gating.encoders=1."
