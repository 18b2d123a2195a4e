# SPDX-License-Identifier: MIT
"""Training utilities; submodules load on first use (`import solo.utils; solo.utils.knn`)."""

from importlib import import_module

__all__ = [
    "auto_resumer",
    "auto_umap",
    "checkpointer",
    "kmeans",
    "knn",
    "lars",
    "lr_scheduler",
    "metrics",
    "misc",
    "momentum",
    "positional_encodings",
    "sinkhorn_knopp",
    "whitening",
]


def __getattr__(name):
    if name in __all__:
        return import_module(f"solo.utils.{name}")
    raise AttributeError(f"module 'solo.utils' has no attribute '{name}'")


def __dir__():
    return [*globals(), *__all__]
