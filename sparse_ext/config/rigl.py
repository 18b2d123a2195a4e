# SPDX-License-Identifier: MIT
"""The settings of RigL and RigL-ITOP, which drop and grow at constant sparsity.

Importing this module does not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from solo.errors import ConfigError
from sparse_ext.config.base import (
    ALLOCATIONS,
    ConstantConfig,
    _fractions,
    derive,
    require_choice,
)


@dataclass(frozen=True)
class RigLConfig(ConstantConfig):
    """Dropping by magnitude and growing by gradient at constant density per layer (RigL).

    Attributes:
        update_period: None = 100, in a run of fewer than 19,500 steps 1/195 of it.
        update_end: fraction of the run after which masks stay as they are.
        allocation: layer densities: `erk`, `er`, `uniform`.
        stem_dense: leave the first convolution out of the prunable set; left out: only with
            `uniform` (as the paper does).
        drop_start: fraction of a layer's weights that is swapped, at the first step (alpha).
        drop_end: the same at `update_end` (cosine in between).
        skip_step: the optimizer does nothing at a step that changes masks.
    """

    name: str = "rigl"
    stem_dense: bool = None  # type: ignore[assignment]
    update_end: float = 0.75
    allocation: str = "erk"
    drop_start: float = 0.3
    drop_end: float = 0.0
    skip_step: bool = True

    PERIOD = 100

    def fill_in(self) -> None:
        """The same density everywhere would cost the small first layer most."""
        super().fill_in()
        if self.stem_dense is None:
            derive(self, "stem_dense", self.allocation == "uniform")

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
