# SPDX-License-Identifier: MIT
"""The schema of the `gating:` section: frozen dataclasses, the only place with its defaults.

`+gating=vicreg_dual gating.budget=0.3` works behind any YAML whose backbone is a ResNet.
Importing this module does not import torch.
"""

from __future__ import annotations

from typing import Any

from sparse_ext.config import reading
from sparse_ext.gating.config.base import GatingConfig
from sparse_ext.gating.config.channel import VICRegDualConfig, VICRegGatingConfig
from sparse_ext.gating.config.saliency import DGCConfig, FBSConfig
from sparse_ext.gating.config.spatial import CDGConfig, CGNetConfig

METHODS: dict[str, type[GatingConfig]] = {
    "vicreg_gating": VICRegGatingConfig,
    "vicreg_dual": VICRegDualConfig,
    "cgnet": CGNetConfig,
    "cdg": CDGConfig,
    "fbs": FBSConfig,
    "dgc": DGCConfig,
}


def build(section: Any) -> GatingConfig:
    """The checked configuration of a `gating:` section (see `sparse_ext.config.reading.build`)."""
    return reading.build(section, "gating", METHODS)


def store() -> None:
    """Register every method as an entry of Hydra's group `gating`; twice changes nothing."""
    reading.store("gating", METHODS)
