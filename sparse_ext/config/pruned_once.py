# SPDX-License-Identifier: MIT
"""The settings of methods whose masks follow no update period (see `sparse_ext.config`).

Importing this module does not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from solo.errors import ConfigError
from sparse_ext.config.base import (
    ALLOCATIONS,
    COMPARED,
    FixedConfig,
    SparseConfig,
    _all_nm,
    derive,
    refuse_unused,
    require_choice,
)
from sparse_ext.config.scorer_names import scorer_named


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
        refuse_unused(self, "score", why="its masks are drawn at random")


@dataclass(frozen=True)
class FixedMasksConfig(FixedConfig):
    """The masks of the sparse encoder that the run starts from (`init_from`), from first to last.

    Their sparsity is what it is; `final` is left out.
    """

    name: str = "fixed"

    def __post_init__(self):
        super().__post_init__()
        refuse_unused(self, "score", "budget", why="its masks are there already")


@dataclass(frozen=True)
class OneShotConfig(FixedConfig):
    """Pruning at one moment, by magnitude or another `score`.

    Attributes:
        allocation: `global` compares weights of all layers; `isomorphic` compares layers, or
            channels, of one kind, of each of which the same share goes; `erk`, `er` and `uniform`
            give every layer its budget and compare within it.
        prune_at: fraction of the run after which it happens: 0 = before the first step, 1 = after
            the last; what is left of the run fine-tunes.
        dense_checkpoint: file of a trained dense run, whose weights a fresh run starts from.
    """

    SCORED_BY = ("weight", "gradient", "mean_gradient", "curvature")

    name: str = "oneshot"
    allocation: str = "global"
    prune_at: float = 0.0
    dense_checkpoint: str | None = None

    def __post_init__(self):
        super().__post_init__()
        require_choice("allocation", self.allocation, (*COMPARED, *ALLOCATIONS))
        if self.prune_at and scorer_named(self.score).needs == "curvature":
            raise ConfigError(
                f"sparse.score={self.score} looks at the first batch, and sparse.prune_at="
                f"{self.prune_at} prunes later: set sparse.prune_at=0, or another score."
            )
        if not 0 <= self.prune_at <= 1:
            raise ConfigError(f"sparse.prune_at={self.prune_at} is not a fraction of the run.")


@dataclass(frozen=True)
class SNIPConfig(FixedConfig):
    """Connection sensitivity on the first batch (SNIP), of the first convolution as well."""

    name: str = "snip"
    stem_dense: bool = False
    score: str = "snip"

    def __post_init__(self):
        super().__post_init__()
        _own_score(self)


@dataclass(frozen=True)
class GraSPConfig(FixedConfig):
    """Gradient signal preservation on the two halves of the first batch (GraSP).

    The first convolution is prunable, and the gradient whose flow counts is that of all convolution
    and linear weights that train, heads included.

    Attributes:
        temperature: what logits are divided by; 1 for a self-supervised loss, 200 in the paper,
            which is supervised.
        head: attribute of the module whose output are the logits; read if there are labels.
        samples_per_class: score that many samples of each class instead of the first batch, 0 =
            the first batch; left out: 25 if `temperature` is not 1, that is with labels, else 0.
    """

    SCORED_BY = ("curvature",)

    name: str = "grasp"
    stem_dense: bool = False
    score: str = "grasp"
    temperature: float = 1.0
    head: str = "classifier"
    samples_per_class: int = None  # type: ignore[assignment]

    def __post_init__(self):
        super().__post_init__()
        _own_score(self)
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
        refuse_unused(self, "score", why="the larger weights of a group stay")

    def obstacle(self, shape: tuple[int, ...]) -> str:
        """Why a layer stays dense whose groups would fit; empty if it does not."""
        rows, columns = shape[:2]
        if self.tensor_core and (rows % 8 or columns % 16):
            return f"{rows}x{columns} channels, tensor cores take multiples of 8x16"
        return ""


def _own_score(config: SparseConfig) -> None:
    """SNIP and GraSP are their scores."""
    refuse_unused(
        config, "score", why="that is its score; +sparse=oneshot sparse.score=NAME takes any other"
    )
