# SPDX-License-Identifier: MIT
"""The `sparse:` section of a configuration: one frozen dataclass per pruning method.

Importing this package does not import torch.
"""

from sparse_ext.config.base import SparseConfig
from sparse_ext.config.gradual import GMPConfig
from sparse_ext.config.sections import (
    METHODS,
    build,
    defaults,
    register_method,
    store,
    to_dict,
)
from sparse_ext.config.synccp import CSIConfig, SyncCPConfig

__all__ = [
    "METHODS",
    "CSIConfig",
    "GMPConfig",
    "SparseConfig",
    "SyncCPConfig",
    "build",
    "defaults",
    "register_method",
    "store",
    "to_dict",
]
