# SPDX-License-Identifier: MIT
"""From the name of a method to its pruner."""

from __future__ import annotations

from sparse_ext.config.sections import PRUNERS, SparseConfig
from sparse_ext.masks.encoder import Encoder
from sparse_ext.pruning.log import listen
from sparse_ext.pruning.pruner import Pruner
from sparse_ext.schedules import Clock


def build_pruner(
    config: SparseConfig,
    online: Encoder,
    momentum: Encoder | None,
    clock: Clock,
    seed: int = 0,
) -> Pruner:
    """The pruner of the method that a configuration names."""
    listen()
    return method_class(config)(config, online, momentum, clock, seed)


def method_class(config: SparseConfig) -> type[Pruner]:
    """The class of a method's pruner (see `sparse_ext.config.register_method`)."""
    return PRUNERS.find(config.name, "sparse.name")
