# SPDX-License-Identifier: MIT
"""sparse_ext: encoders that become sparse while they train, on top of `solo`."""

from importlib import import_module

_LAZY = {
    "enable": "sparse_ext.extension",
    "finalize": "sparse_ext.training.finalize",
    "sparsify": "sparse_ext.extension",
    "register_allocation": "sparse_ext.config.base",
    "register_format": "sparse_ext.export.formats",
    "register_gating_method": "sparse_ext.gating.config",
    "register_granularity": "sparse_ext.config.granularity_names",
    "register_method": "sparse_ext.config.sections",
    "register_scorer": "sparse_ext.config.scorer_names",
}
_ROOMS = (
    "allocation",
    "config",
    "cost",
    "distill",
    "export",
    "gating",
    "kernels",
    "masks",
    "prune",
    "pruning",
    "report",
    "schedules",
    "tickets",
    "training",
)
__all__ = [*_LAZY]


def __dir__():
    return sorted([*_LAZY, *_ROOMS])


def __getattr__(name):
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    try:
        return import_module(f"sparse_ext.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"sparse_ext.{name}":
            raise
        raise AttributeError(f"module 'sparse_ext' has no attribute '{name}'") from None
