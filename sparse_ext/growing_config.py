# SPDX-License-Identifier: MIT
"""The settings of GraNet and RigL, which prune and regrow (see `sparse_ext.config`).

Importing this module does not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from solo.errors import ConfigError
from sparse_ext.base_config import ALLOCATIONS, ConstantConfig, SparseConfig, require_choice


@dataclass(frozen=True)
class GraNetConfig(SparseConfig):
    """Gradual pruning with neuroregeneration (GraNet).

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
class RigLConfig(ConstantConfig):
    """Dropping by magnitude and growing by gradient at constant density per layer (RigL).

    Attributes:
        update_period: None = 100, in a run of fewer than 19,500 steps 1/195 of it.
        update_end: fraction of the run after which masks stay as they are.
        allocation: layer densities: `erk`, `er`, `uniform` (RigL keeps the stem dense then).
        drop_start: fraction of a layer's weights that is swapped, at the first step (alpha).
        drop_end: the same at `update_end` (cosine in between).
        skip_step: the optimizer does nothing at a step that changes masks.
    """

    name: str = "rigl"
    stem_dense: bool = False
    update_end: float = 0.75
    allocation: str = "erk"
    drop_start: float = 0.3
    drop_end: float = 0.0
    skip_step: bool = True

    PERIOD = 100

    def __post_init__(self):
        super().__post_init__()
        require_choice("allocation", self.allocation, ALLOCATIONS)
        _fractions(self, "drop_start", "drop_end")
        if not 0 < self.update_end <= 1:
            raise ConfigError(f"sparse.update_end={self.update_end} is not a fraction in (0, 1].")
        if self.some_survive and self.final == 1:
            raise ConfigError(
                f"sparse.name={self.name} swaps sparse groups for dense ones, and with "
                f"sparse.granularity={self.granularity} and sparse.final=1 no group is dense. Set "
                f"sparse.final below 1, or use +sparse=asp or +sparse=sr_ste."
            )


@dataclass(frozen=True)
class RigLITOPConfig(RigLConfig):
    """RigL with In-Time Over-Parameterization: rarer, larger changes until the end of the run.

    Attributes:
        update_period: None = 4000, in a run of fewer than 780,000 steps 1/195 of it.
    """

    name: str = "rigl_itop"
    update_end: float = 1.0
    drop_start: float = 0.5
    drop_end: float = 0.005
    skip_step: bool = False

    PERIOD = 4000


def _fractions(config: Any, *keys: str) -> None:
    for key in keys:
        if not 0 <= getattr(config, key) < 1:
            raise ConfigError(f"sparse.{key}={getattr(config, key)} must be in [0, 1).")


GROWING: dict[str, type[SparseConfig]] = {
    "granet": GraNetConfig,
    "granet_ssl": GraNetSSLConfig,
    "rigl": RigLConfig,
    "rigl_itop": RigLITOPConfig,
}
