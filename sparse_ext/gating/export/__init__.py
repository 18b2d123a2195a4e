# SPDX-License-Identifier: MIT
"""Channel-gated encoders for use: networks that compute open channels only.

`python3 -m sparse_ext.gating.export RUN --output FOLDER`, then `load_gated(FOLDER)`.
"""

from importlib import import_module

_LAZY = {
    "OpenEncoder": "sparse_ext.gating.export.encoder",
    "export_gated": "sparse_ext.gating.export.build",
    "load_gated": "sparse_ext.gating.export.files",
    "save_gated": "sparse_ext.gating.export.files",
}
__all__ = [*_LAZY]


def __getattr__(name):
    if name not in _LAZY:
        raise AttributeError(f"module 'sparse_ext.gating.export' has no attribute '{name}'")
    return getattr(import_module(_LAZY[name]), name)
