# SPDX-License-Identifier: MIT
"""The `gating:` section of a configuration: one frozen dataclass per gating method.

Importing this package does not import torch.
"""

from sparse_ext.gating.config.base import GatingConfig
from sparse_ext.gating.config.channel import VICRegDualConfig, VICRegGatingConfig
from sparse_ext.gating.config.saliency import DGCConfig, FBSConfig
from sparse_ext.gating.config.sections import METHODS, build, register_gating_method, store
from sparse_ext.gating.config.spatial import CDGConfig, CGNetConfig

__all__ = [
    "METHODS",
    "CDGConfig",
    "CGNetConfig",
    "DGCConfig",
    "FBSConfig",
    "GatingConfig",
    "VICRegDualConfig",
    "VICRegGatingConfig",
    "build",
    "register_gating_method",
    "store",
]
