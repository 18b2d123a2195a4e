# SPDX-License-Identifier: MIT
"""The settings of CGNet and CDG. Importing this module does not import torch."""

from __future__ import annotations

import typing
from dataclasses import dataclass, replace
from statistics import NormalDist

from solo.errors import ConfigError
from sparse_ext.config import reading
from sparse_ext.gating.config.base import GatingConfig

TILE = 8  # output channels that share a decision with `structured`: K = 8x1x1


@dataclass(frozen=True)
class CGNetConfig(GatingConfig):
    """A base path decides where the conditional path of a convolution is computed (CGNet).

    Attributes:
        groups: G; the base path takes 1/G of a convolution's MACs.
        target: s, what the thresholds tau are drawn to; see `target_mode`.
        target_mode: `threshold` = s is a threshold (0.6 closes 72% if saliences are standard
            normal); `sparsity` = s is the share to close, and its normal quantile the threshold.
        lamb: lambda, weight of the regulariser of the thresholds.
        reg: `squared` = sum of (tau - s)^2 over the channels, `l2` = its root per layer (CDG,
            Eq. 11 as printed).
        alpha: slope of the sigmoid through which the gradient of a decision goes.
        sparse_bp: no gradient to decisions that are closed.
        norm: of the salience before it is compared: `batch` or `instance`, without affine part.
        tau_init: thresholds at the start.
        structured: 8 consecutive output channels share their decision.
        unified: all views use the decisions of the first (CDG, Table 1); in training only.
        gate_shortcut: gate the shortcuts' convolutions, too.
        gate_1x1: gate the other 1x1 convolutions of a bottleneck, too.
        shuffle: shuffle the input channels between the groups.
    """

    BRANCHES: typing.ClassVar[tuple[str, ...]] = ("a1",)

    name: str = "cgnet"
    eval: str = "a1"
    groups: int = 4
    target: float = 0.6
    target_mode: str = "threshold"
    lamb: float = 1e-4
    reg: str = "squared"
    alpha: float = 2.0
    sparse_bp: bool = False
    norm: str = "batch"
    tau_init: float = 0.0
    structured: bool = False
    unified: bool = False
    gate_shortcut: bool = False
    gate_1x1: bool = False
    shuffle: bool = False

    def __post_init__(self):
        super().__post_init__()
        reading.require_choice("gating.target_mode", self.target_mode, ("threshold", "sparsity"))
        reading.require_choice("gating.reg", self.reg, ("squared", "l2"))
        reading.require_choice("gating.norm", self.norm, ("batch", "instance"))
        if self.groups < 2:
            raise ConfigError(f"gating.groups={self.groups} must be at least 2 (2, 4, 8 usually).")
        if self.alpha <= 0 or self.lamb < 0:
            raise ConfigError(
                f"gating.alpha={self.alpha} must be positive and gating.lamb={self.lamb} not "
                f"negative."
            )
        if self.target_mode == "sparsity" and not 0 < self.target < 1:
            raise ConfigError(
                f"gating.target={self.target} is a share to close with target_mode=sparsity: it "
                f"must be between 0 and 1."
            )

    @property
    def threshold(self) -> float:
        """The value that the thresholds tau are drawn to."""
        if self.target_mode == "sparsity":
            return NormalDist().inv_cdf(self.target)
        return self.target


@dataclass(frozen=True)
class CDGConfig(CGNetConfig):
    """Contrastive dual gating: two branches with a base path each.

    Attributes:
        overlap: per cent of the base path that both branches share (Table 2): 0 or 100, and with
            4 groups 50 or 75.
        allow_overlap: with odd G and overlap 0 the middle blocks coincide; accept that.
        split: `view` = views 1, 3, ... take a1 and views 2, 4, ... a2; `encoder` = the online
            encoder takes a1 and the momentum encoder a2; `auto` = `encoder` if the run has a
            momentum encoder, else `view`.
    """

    BRANCHES: typing.ClassVar[tuple[str, ...]] = ("a1", "a2")

    name: str = "cdg"
    overlap: int = 0
    allow_overlap: bool = False
    split: str = "auto"

    def __post_init__(self):
        super().__post_init__()
        reading.require_choice("gating.split", self.split, ("auto", "view", "encoder"))
        if self.overlap not in (0, 50, 75, 100):
            raise ConfigError(f"gating.overlap={self.overlap} must be 0, 50, 75 or 100 (per cent).")
        if self.overlap in (50, 75) and self.groups != 4:
            raise ConfigError(
                f"gating.overlap={self.overlap} is defined for gating.groups=4 only, not "
                f"{self.groups}: set overlap to 0 or 100."
            )
        if self.overlap == 0 and self.groups % 2 and not self.allow_overlap:
            raise ConfigError(
                f"gating.groups={self.groups} is odd: the diagonal and the inverse diagonal share "
                f"their middle block. Take an even number, or set gating.allow_overlap=true."
            )

    def for_run(self, momentum: bool) -> CDGConfig:
        """The configuration with `split: auto` decided for the run's method."""
        if self.split != "auto":
            return self
        return replace(self, split="encoder" if momentum else "view")
