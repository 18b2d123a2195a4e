# SPDX-License-Identifier: MIT
"""The settings of GMP and GraNet, which prune gradually (see `sparse_ext.config`).

Importing this module does not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from solo.errors import ConfigError
from sparse_ext.config.base import (
    ALLOCATIONS,
    COMPARED,
    SparseConfig,
    _fractions,
    require_choice,
)


@dataclass(frozen=True)
class GraNetConfig(SparseConfig):
    """The settings of gradual pruning with neuroregeneration (GraNet).

    Attributes:
        ramp_start: fraction of the run at which the ramp starts.
        ramp_end: fraction at which it ends (0.5 for CIFAR, 0.3 for ImageNet).
        initial_allocation: layer densities of random masks where `initial` is above 0.
        drop_start: fraction of a layer's weights that is dropped and regrown, at the first step.
        drop_end: the same at the last step (cosine in between).
    """

    name: str = "granet"
    stem_dense: bool = False
    ramp_start: float = 0.0
    ramp_end: float = 0.5
    initial_allocation: str = "erk"
    drop_start: float = 0.5
    drop_end: float = 0.005

    def __post_init__(self):
        super().__post_init__()
        require_choice("initial_allocation", self.initial_allocation, ALLOCATIONS)
        _fractions(self, "drop_start", "drop_end")
        if not 0 <= self.ramp_start < self.ramp_end:
            raise ConfigError(
                f"sparse.ramp_start={self.ramp_start} must be at least 0 and before "
                f"sparse.ramp_end={self.ramp_end} (fractions of the run)."
            )


@dataclass(frozen=True)
class GraNetSSLConfig(GraNetConfig):
    """GraNet on an encoder pair as SyncCP compares with it: no CSI, no constant gap.

    Both encoders start dense. `momentum_final` left at None is `final` less 0.3.
    """

    name: str = "granet_ssl"
    stem_dense: bool = True
    ramp_end: float = 0.69

    GAP = 0.3

    @property
    def momentum(self) -> tuple[float, float]:
        """Initial and final sparsity of the momentum encoder."""
        first, last = super().momentum
        if self.momentum_final is None:
            last = max(first, round(self.final - self.GAP, 12))
        return first, last


@dataclass(frozen=True)
class GMPConfig(SparseConfig):
    """Gradual magnitude pruning: cubic ramp, smallest weights first, nothing comes back.

    With another `score` than `magnitude` those of smallest score go first.

    Attributes:
        ramp_start: fraction of the run at which the ramp starts.
        allocation: `global` compares weights of all layers; `isomorphic` compares layers, or
            channels, of one kind, of each of which the same share goes; `erk`, `er` and `uniform`
            give every layer its budget and compare within it.
    """

    name: str = "gmp"
    ramp_start: float = 0.0
    allocation: str = "global"

    def __post_init__(self):
        super().__post_init__()
        require_choice("allocation", self.allocation, (*COMPARED, *ALLOCATIONS))
        if not 0 <= self.ramp_start < self.ramp_end:
            raise ConfigError(
                f"sparse.ramp_start={self.ramp_start} must be at least 0 and before "
                f"sparse.ramp_end={self.ramp_end} (fractions of the run)."
            )
