# SPDX-License-Identifier: MIT
"""SupCon (Khosla et al. 2020): images of one class attract, all others repel.

The positives are summed inside the logarithm (their equation 3), as in solo-learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from solo.errors import ConfigError
from solo.methods.simclr import SimCLR
from solo.utils.misc import omegaconf_select


class SupCon(SimCLR):
    """SimCLR with labels in the place of image indexes.

    Raises:
        ConfigError: for a data set without labels.
    """

    @classmethod
    def add_and_assert_specific_cfg(cls, cfg: DictConfig) -> DictConfig:
        """Check the configuration as SimCLR does and refuse `data.no_labels`."""
        cfg = super().add_and_assert_specific_cfg(cfg)
        if omegaconf_select(cfg, "data.no_labels", False):
            raise ConfigError("supcon learns from labels: data.no_labels=True goes with simclr")
        return cfg

    def positives(self, batch: Sequence[Any]) -> Tensor:
        """(N,) labels; rows with the same label attract."""
        return batch[-1]
