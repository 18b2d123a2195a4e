# SPDX-License-Identifier: MIT
"""The settings of methods whose masks follow no update period (see `sparse_ext.config`).

Importing this module does not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from solo.errors import ConfigError
from sparse_ext.base_config import (
    ALLOCATIONS,
    ConstantConfig,
    SparseConfig,
    derive,
    refuse_unused,
    require_choice,
)


@dataclass(frozen=True)
class FixedConfig(ConstantConfig):
    """Masks that do not depend on an update period."""

    def __post_init__(self):
        super().__post_init__()
        refuse_unused(self, "update_period", why="nothing happens every so many steps")


@dataclass(frozen=True)
class RandomConfig(FixedConfig):
    """Random masks from the first step to the last.

    Attributes:
        allocation: `erk`, `er` and `uniform` give every layer its budget, `global` draws over all
            layers together.
    """

    name: str = "random"
    allocation: str = "erk"

    def __post_init__(self):
        super().__post_init__()
        require_choice("allocation", self.allocation, (*ALLOCATIONS, "global"))


@dataclass(frozen=True)
class OneShotConfig(FixedConfig):
    """Magnitude pruning at one moment.

    Attributes:
        allocation: `global` compares weights of all layers; `erk`, `er` and `uniform` give every
            layer its budget and compare within it.
        prune_at: fraction of the run after which it happens: 0 = before the first step, 1 = after
            the last; what is left of the run fine-tunes.
        dense_checkpoint: file of a trained dense run, whose weights a fresh run starts from.
    """

    name: str = "oneshot"
    allocation: str = "global"
    prune_at: float = 0.0
    dense_checkpoint: str | None = None

    def __post_init__(self):
        super().__post_init__()
        require_choice("allocation", self.allocation, ("global", *ALLOCATIONS))
        if not 0 <= self.prune_at <= 1:
            raise ConfigError(f"sparse.prune_at={self.prune_at} is not a fraction of the run.")


@dataclass(frozen=True)
class SNIPConfig(FixedConfig):
    """Connection sensitivity on the first batch (SNIP)."""

    name: str = "snip"


@dataclass(frozen=True)
class GraSPConfig(FixedConfig):
    """Gradient signal preservation on the two halves of the first batch (GraSP).

    Attributes:
        temperature: what logits are divided by; 1 for a self-supervised loss, 200 in the paper,
            which is supervised.
        head: attribute of the module whose output are the logits; read if there are labels.
        samples_per_class: score that many samples of each class instead of the first batch, 0 =
            the first batch; left out: 25 if `temperature` is not 1, that is with labels, else 0.
    """

    name: str = "grasp"
    temperature: float = 1.0
    head: str = "classifier"
    samples_per_class: int = None  # type: ignore[assignment]

    def __post_init__(self):
        super().__post_init__()
        if self.temperature <= 0:
            raise ConfigError(f"sparse.temperature={self.temperature} must be above 0.")
        if self.samples_per_class < 0:
            raise ConfigError(
                f"sparse.samples_per_class={self.samples_per_class} must not be negative."
            )

    def fill_in(self) -> None:
        """Labels are there where logits have a temperature."""
        super().fill_in()
        if self.samples_per_class is None:
            derive(self, "samples_per_class", 0 if self.temperature == 1 else 25)


@dataclass(frozen=True)
class ASPConfig(FixedConfig):
    """One-shot N:M from a trained dense network, fine-tuned with fixed masks (NVIDIA's ASP).

    Attributes:
        dense_checkpoint: file of a trained dense run, whose weights a fresh run starts from.
        tensor_core: leave layers dense whose outputs are no multiple of 8 or whose inputs are
            none of 16, as ASP does.
    """

    name: str = "asp"
    granularity: str = "2:4"
    dense_checkpoint: str | None = None
    tensor_core: bool = True

    def __post_init__(self):
        super().__post_init__()
        _all_nm(self)

    def obstacle(self, shape: tuple[int, ...]) -> str:
        """Why a layer stays dense whose groups would fit; empty if it does not."""
        rows, columns = shape[:2]
        if self.tensor_core and (rows % 8 or columns % 16):
            return f"{rows}x{columns} channels, tensor cores take multiples of 8x16"
        return ""


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
        """Sparsity of the momentum encoder."""
        return 0.0, (self.final if self.reverse else 0.0)


@dataclass(frozen=True)
class SDCLRConfig(FixedConfig):
    """The first view through the dense network, the others through its pruned self (SDCLR).

    Attributes:
        final: share of weights that the pruned branch misses; left out: 0.9 (0.3 for ImageNet-100).
        dual_bn: the branches have batch norms of their own, heads included.
    """

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
        refuse_unused(self, "momentum_final", why="the momentum encoder's subnet has sparse.final")
        refuse_unused(self, "ema_mode", why="the momentum encoder stays unpruned")
        if not 0 < self.admm_end < 1:
            raise ConfigError(f"sparse.admm_end={self.admm_end} is not a fraction in (0, 1).")
        if not 0 < self.rho_start <= self.rho_end:
            raise ConfigError(
                f"sparse.rho_start={self.rho_start} and sparse.rho_end={self.rho_end}: needs "
                f"0 < rho_start <= rho_end."
            )


def _all_nm(config: Any) -> None:
    if not config.some_survive or config.final != 1:
        raise ConfigError(
            f"sparse.name={config.name} makes every group N:M: sparse.granularity="
            f"{config.granularity} with sparse.final={config.final} is not for it. Set a "
            f"granularity such as 2:4, and leave sparse.final out."
        )


FIXED: dict[str, type[SparseConfig]] = {
    "random": RandomConfig,
    "oneshot": OneShotConfig,
    "snip": SNIPConfig,
    "grasp": GraSPConfig,
    "asp": ASPConfig,
    "sr_ste": SRSTEConfig,
    "sd": SDConfig,
    "sdclr": SDCLRConfig,
    "mcp": MCPConfig,
}
