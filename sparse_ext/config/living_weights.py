# SPDX-License-Identifier: MIT
"""The settings of methods whose pruned weights live on: one latent weight, several masks.

Importing this module does not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from solo.errors import ConfigError
from sparse_ext.config.base import FixedConfig, _all_nm, refuse_unused


@dataclass(frozen=True)
class SRSTEConfig(FixedConfig):
    """N:M from scratch through sparse-refined straight-through gradients (SR-STE).

    Attributes:
        decay: lambda, how strongly pruned weights are pulled to zero.
    """

    name: str = "sr_ste"
    granularity: str = "2:4"
    decay: float = 2e-4

    def __post_init__(self):
        super().__post_init__()
        _all_nm(self)
        refuse_unused(self, "score", why="the larger weights of a group stay, step by step")
        refuse_unused(self, "ema_mode", why="the momentum encoder averages the latent weights")
        refuse_unused(self, "momentum_final", why="both encoders are N:M throughout")
        if self.decay < 0:
            raise ConfigError(f"sparse.decay={self.decay} must not be negative.")


@dataclass(frozen=True)
class SDConfig(FixedConfig):
    """One encoder, or one view, sparse at a fixed level; a new mask every epoch (SD-MoCo, ...).

    Attributes:
        final: sparsity of the encoder that is pruned; the other one is dense.
        reverse: prune the momentum encoder instead of the online one.
    """

    SCORED_BY = ("weight",)  # masks are made between steps, where there is no gradient

    name: str = "sd"
    stem_dense: bool = False
    reverse: bool = False

    def __post_init__(self):
        super().__post_init__()
        refuse_unused(
            self, "momentum_final", why="one encoder is pruned to sparse.final, the other not"
        )
        refuse_unused(self, "ema_mode", why="the momentum encoder averages the latent weights")

    @property
    def momentum(self) -> tuple[float, float]:
        """Sparsity of the momentum encoder before and after the ramp."""
        return 0.0, (self.final if self.reverse else 0.0)


@dataclass(frozen=True)
class SDCLRConfig(FixedConfig):
    """The first view through the dense network, the others through its pruned self (SDCLR).

    Attributes:
        final: share of weights that the pruned branch misses; left out: 0.9 (0.3 for ImageNet-100).
        dual_bn: the branches have batch norms of their own, heads included.
    """

    SCORED_BY = ("weight",)  # masks are made between steps, where there is no gradient

    name: str = "sdclr"
    final: float = 0.9
    stem_dense: bool = False
    dual_bn: bool = True

    def __post_init__(self):
        super().__post_init__()
        if self.some_survive:
            raise ConfigError(
                f"sparse.name=sdclr compares the network with its pruned self, which magnitude "
                f"chooses: sparse.granularity={self.granularity} is not for it. Use element, "
                f"block8 or filter."
            )


@dataclass(frozen=True)
class MCPConfig(FixedConfig):
    """Momentum contrastive pruning, a reconstruction: ADMM, then a subnet of the momentum encoder.

    Attributes:
        final: share of filters that the subnet misses, in every layer.
        dense_checkpoint: file of a trained dense run, whose weights a fresh run starts from.
        admm_end: fraction of the run that ADMM takes; the rest fine-tunes.
        rho_start: weight of ADMM's penalty in its first epoch.
        rho_end: the same in its last (geometric in between).
    """

    name: str = "mcp"
    granularity: str = "filter"
    final: float = 0.5
    dense_checkpoint: str | None = None
    admm_end: float = 0.5
    rho_start: float = 1e-4
    rho_end: float = 1e-3

    def __post_init__(self):
        super().__post_init__()
        if self.some_survive:
            raise ConfigError(
                f"sparse.name=mcp prunes filters, not sparse.granularity={self.granularity}."
            )
        refuse_unused(self, "score", why="filters of larger L2 norm stay")
        refuse_unused(self, "momentum_final", why="the momentum encoder's subnet has sparse.final")
        refuse_unused(self, "ema_mode", why="the momentum encoder stays unpruned")
        if not 0 < self.admm_end < 1:
            raise ConfigError(f"sparse.admm_end={self.admm_end} is not a fraction in (0, 1).")
        if not 0 < self.rho_start <= self.rho_end:
            raise ConfigError(
                f"sparse.rho_start={self.rho_start} and sparse.rho_end={self.rho_end}: needs "
                f"0 < rho_start <= rho_end."
            )
