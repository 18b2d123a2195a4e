# SPDX-License-Identifier: MIT
"""The settings of FBS and DGC. Importing this module does not import torch."""

from __future__ import annotations

import typing
from dataclasses import dataclass

from solo.errors import ConfigError
from sparse_ext.gating.config.base import GatingConfig


@dataclass(frozen=True)
class FBSConfig(GatingConfig):
    """Feature boosting and suppression: a convolution's most salient output channels stay.

    Attributes:
        density: d, the share of output channels that is left in the end.
        density_step: the density goes down from 1 by this much at a time ...
        settled: ... in phases of equal length, until this fraction of the training.
        lamb: lambda, weight of the saliences' L1 norm.
        unit_mean: pi is scaled to mean 1 in each image, as a re-implementation does; not in the
            paper, where pi and with it the activations grow from layer to layer.
    """

    BRANCHES: typing.ClassVar[tuple[str, ...]] = ("gated",)

    name: str = "fbs"
    eval: str = "gated"
    density: float = 0.5
    density_step: float = 0.1
    settled: float = 0.75
    lamb: float = 1e-8
    unit_mean: bool = False

    def __post_init__(self):
        super().__post_init__()
        for key in ("density", "density_step", "settled"):
            if not 0 < getattr(self, key) <= 1:
                raise ConfigError(f"gating.{key}={getattr(self, key)} must be above 0, at most 1.")
        if self.lamb < 0:
            raise ConfigError(f"gating.lamb={self.lamb} must not be negative.")


@dataclass(frozen=True)
class DGCConfig(GatingConfig):
    """Dynamic group convolution: every head of a convolution picks its own input channels.

    Attributes:
        heads: H; a head makes 1/H of the output channels.
        gate_factor: share of the input channels that each head keeps in the end.
        squeeze: the saliency network's hidden layer has C_in // squeeze units; half of that
            squeeze where C_in is below 80.
        start: fraction of the training before which every channel stays.
        settled: fraction from which on `gate_factor` holds; linear in between.
        lasso: weight of the mean salience.
        block_norms: the residual blocks keep their own batch norms and ReLUs beside those within
            the layers, as in the authors' network (39 norms in a ResNet-18). False: each block is
            norm, ReLU, convolution only (21 norms), which costs fewer passes over the activations.
    """

    BRANCHES: typing.ClassVar[tuple[str, ...]] = ("gated",)

    name: str = "dgc"
    eval: str = "gated"
    heads: int = 4
    gate_factor: float = 0.45
    squeeze: int = 16
    start: float = 1 / 12
    settled: float = 0.75
    lasso: float = 1e-5
    block_norms: bool = True

    def __post_init__(self):
        super().__post_init__()
        if self.heads < 1 or self.squeeze < 2:
            raise ConfigError(
                f"gating.heads={self.heads} must be at least 1 and gating.squeeze={self.squeeze} "
                f"at least 2."
            )
        if not 0 < self.gate_factor <= 1:
            raise ConfigError(
                f"gating.gate_factor={self.gate_factor} must be above 0, at most 1: the share of "
                f"the input channels that stays."
            )
        if not 0 <= self.start < self.settled <= 1:
            raise ConfigError(
                f"gating.start={self.start} and gating.settled={self.settled} must be fractions "
                f"of the training, the first below the second."
            )
        if self.lasso < 0:
            raise ConfigError(f"gating.lasso={self.lasso} must not be negative.")
