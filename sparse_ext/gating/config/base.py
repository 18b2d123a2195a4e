# SPDX-License-Identifier: MIT
"""What every method's `gating:` section holds. Importing this module does not import torch."""

from __future__ import annotations

import typing
from dataclasses import dataclass

from sparse_ext.config import reading


@dataclass(frozen=True)
class GatingConfig:
    """The settings that all gating methods share.

    Attributes:
        name: the method.
        eval: the branch that a pass takes which no training step has announced: validation,
            linear evaluation, kNN, UMAP, fine-tuning. One of `BRANCHES`.
    """

    BRANCHES: typing.ClassVar[tuple[str, ...]] = ()

    name: str = ""
    eval: str = ""

    def __post_init__(self):
        reading.require_choice(f"gating.eval (of {self.name})", self.eval, self.BRANCHES)

    def for_run(self, momentum: bool) -> GatingConfig:
        """These settings, with what only the run's method decides filled in.

        Args:
            momentum: whether the run has a momentum encoder.
        """
        return self

    def obstacle_to_masks(self) -> str:
        """Why `sparse` cannot be asked of the same encoder, and what to do; empty if it can."""
        return ""
